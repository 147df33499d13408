"""The manifest of a committed artifact, and the hashes of its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from rlt_core.errors import UserError
from rlt_core.store.files import Damaged, Files, local_tree, parallel, sha256_of

HASHED_AT_ONCE = 4
"""Files; hashing releases Python's global lock."""
SCHEMA_VERSION = 1
"""Version of the format; to be raised when an older rlt could not read a manifest."""


class Ref(BaseModel):
    """Names an artifact: its kind and its key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    key: str


class FileEntry(BaseModel):
    """One file of an attempt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    sha256: str
    bytes: int
    rows: int | None = None
    """Rows of a Parquet file."""


class Manifest(BaseModel):
    """The commit of an artifact: it exists because this file does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    ref: Ref
    attempt: str
    stage: str
    stage_version: int
    label: str
    """The node's name in its graph, e.g. `student-sft[rlt]`."""
    profile: str
    seed: int | None
    config: dict[str, Any]
    inputs: dict[str, Ref]
    files: list[FileEntry]
    metrics: dict[str, float]
    packages: dict[str, str]
    """Versions of the packages that computed it."""
    git_commit: str | None
    flow_run_id: str | None
    started_at: datetime
    finished_at: datetime
    seconds: float
    gpu_seconds: float
    device: str
    threads: int

    @classmethod
    def parse(cls, data: bytes, where: str) -> Manifest:
        """Parse a manifest. Raises UserError that says whether it is damaged or of a newer
        version."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            if _schema_version(data) > SCHEMA_VERSION:
                raise UserError(
                    f"{where} was written by a newer rlt; update this one (pip install -U)"
                ) from None
            raise UserError(
                f"{where} is damaged: {error.errors()[0]['msg']}. Restore it, or delete this file "
                "and run again to compute the artifact again"
            ) from None

    def only(self, suffix: str) -> Manifest:
        """Return the manifest with only the files of this suffix."""
        files = [file for file in self.files if file.path.endswith(suffix)]
        return self.model_copy(update={"files": files})

    @property
    def tables(self) -> dict[str, list[str]]:
        """The files of each table: `{table}.parquet` or `{table}/*.parquet`."""
        found: dict[str, list[str]] = {}
        for entry in self.files:
            path = PurePosixPath(entry.path)
            folder = path.parent.as_posix()
            if path.suffix == ".parquet":
                found.setdefault(path.stem if folder == "." else folder, []).append(entry.path)
        return found

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def rows(self) -> int:
        """Rows of all Parquet files."""
        return sum(file.rows or 0 for file in self.files)


def _schema_version(data: bytes) -> int:
    try:
        return int(json.loads(data)["schema_version"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0


def describe_files(folder: Path) -> list[FileEntry]:
    """Hash and count every file of a local folder."""
    return parallel(lambda file: _describe(folder, file), local_tree(folder), HASHED_AT_ONCE)


def _describe(folder: Path, file: Path) -> FileEntry:
    rows = None
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows = pq.read_metadata(file).num_rows
    path = str(file.relative_to(folder))
    return FileEntry(path=path, sha256=sha256_of(file), bytes=file.stat().st_size, rows=rows)


def problems_of(
    entries: Sequence[FileEntry],
    where: str,
    sizes: Mapping[str, int],
    sha256: Callable[[FileEntry], str],
) -> dict[str, str]:
    """Return path -> what is wrong, for files that are missing, resized or altered.

    `sizes`: bytes of the files that exist; `sha256` reads one; `where`: their folder, in messages.
    """

    def problem(entry: FileEntry) -> str | None:
        if entry.path not in sizes:
            return "missing"
        if sizes[entry.path] != entry.bytes:
            return f"{sizes[entry.path]} bytes, {entry.bytes} when committed"
        if sha256(entry) != entry.sha256:
            return "altered since it was committed (sha256 differs)"
        return None

    found = zip(entries, parallel(problem, entries, HASHED_AT_ONCE), strict=True)
    return {entry.path: f"{where}/{entry.path}: {line}" for entry, line in found if line}


def problems_in_store(files: Files, path: str, entries: Sequence[FileEntry]) -> list[str]:
    """Return one line per damaged file of a folder in the store."""
    found = problems_of(
        entries, files.full(path), files.sizes(path),
        lambda entry: files.sha256(f"{path}/{entry.path}", entry.bytes),
    )  # fmt: skip
    return list(found.values())


def intact_copy(files: Files, path: str, entries: Sequence[FileEntry], what: str, fix: str) -> Path:
    """Return a local folder with files of a folder of the store, all hashed; damaged copies are
    fetched again.

    Raises UserError that names `what`, the first file that is damaged in the store, and `fix`.
    """
    wanted = {entry.path: entry.bytes for entry in entries}

    def problems(folder: Path) -> dict[str, str]:
        there = {str(file.relative_to(folder)): file.stat().st_size for file in local_tree(folder)}
        return problems_of(
            entries, files.full(path), there, lambda entry: sha256_of(folder / entry.path)
        )

    try:
        folder = files.download(path, wanted)
        found = problems(folder)
        if found and not files.is_local:
            files.drop_copies(path, found)
            found = problems(files.download(path, wanted))
    except Damaged as error:
        found = {"": str(error)}
    if found:
        raise UserError(f"{what} is damaged: {next(iter(found.values()))}. {fix}")
    return folder
