"""The manifest of a committed artifact, the hashes of its files, and all manifests of a store.

A committed manifest never changes, so on S3 a local copy with the listed size and time equals the
file in the store. Copies may be deleted at any time.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from rlt_core.errors import UserError
from rlt_core.names import RelativePath
from rlt_core.store.files import Damaged, Entry, Files, parallel, reason, sha256_of, tree

HASHED_AT_ONCE = 4
"""Files; hashing releases Python's global lock."""
SCHEMA_VERSION = 1
"""Version of the format; to be raised when an older rlt could not read a manifest."""
RESTORE = (
    "Restore it from a copy of the store; or move it elsewhere, and the next run computes the "
    "artifact again"
)

SETTLED_S = 10.0
"""A younger manifest is not copied: some servers report times in whole seconds, within which one
may be removed and written again with as many bytes."""


Listed = dict[str, Entry | None]
"""Path of a manifest -> its entry in the listing."""

Kind = Literal["dataset", "model", "traces", "scores", "evaluation", "ranking", "report"]
KEY, ATTEMPT = "[0-9a-f]{16}", "[0-9a-f]{12}"
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 45)]
"""Of which a whole manifest's fit into 64 bits, as all its numbers do."""
Integer = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
AttemptId = Annotated[str, Field(pattern=f"^{ATTEMPT}$")]


class Ref(BaseModel):
    """Names an artifact: its kind and its key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    key: Annotated[str, Field(pattern=f"^{KEY}$")]

    @property
    def folder(self) -> str:
        """Folder of its attempts in a store."""
        return f"artifacts/{self.kind}/{self.key}"

    @property
    def manifests(self) -> tuple[str, str]:
        """Places of its manifest: in a store of today and in one of the first version."""
        return f"{self.folder}.json", f"{self.folder}/manifest.json"


class FileEntry(BaseModel):
    """One file of an attempt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: RelativePath
    sha256: Hash
    bytes: Count
    rows: Count | None = None
    """Rows of a Parquet file."""


class Manifest(BaseModel):
    """The commit of an artifact: it exists because this file does."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    ref: Ref
    attempt: AttemptId
    stage: str
    stage_version: Integer
    label: str
    """The node's name in its graph, e.g. `student-sft[rlt]`."""
    profile: str
    seed: Integer | None
    config: dict[str, Any]
    inputs: dict[str, Ref]
    files: list[FileEntry]
    metrics: dict[str, float]
    packages: dict[str, str]
    """Versions of the packages that computed it."""
    git_commit: str | None
    flow_run_id: str | None
    started_at: AwareDatetime
    finished_at: AwareDatetime
    seconds: float
    gpu_seconds: float
    device: str
    threads: Integer

    @field_validator("files")
    @classmethod
    def _one_file_per_path(cls, files: list[FileEntry]) -> list[FileEntry]:
        paths = {file.path for file in files}
        above = {parent.as_posix() for path in paths for parent in PurePosixPath(path).parents}
        if len(paths) < len(files) or paths & above:
            raise ValueError("two files have one path, or one is the folder of another")
        return files

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
    def name(self) -> str:
        """The label with the seed: `teacher-grpo@0`."""
        return self.label if self.seed is None else f"{self.label}@{self.seed}"

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def rows(self) -> int:
        """Rows of all Parquet files."""
        return sum(file.rows or 0 for file in self.files)


def describe_files(folder: Path) -> list[FileEntry]:
    """Hash and count every file of a local folder. Raises UserError for a link, or for a name that
    a manifest cannot have."""

    def describe(item: tuple[str, int]) -> FileEntry:
        path, size = item
        file, rows = folder / path, None
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_metadata(file).num_rows
        return FileEntry(path=path, sha256=sha256_of(file), bytes=size, rows=rows)

    try:
        return parallel(describe, list(tree(folder).items()), HASHED_AT_ONCE)
    except ValidationError as error:
        raise UserError(f"{folder}: {reason(error)}; rename the file") from None


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


def intact_copy(files: Files, path: str, entries: Sequence[FileEntry], what: str, fix: str) -> Path:
    """Return a local folder with files of a folder of the store, all hashed; damaged copies are
    fetched again.

    Raises UserError that names `what`, the first file that is damaged in the store, and `fix`.
    """
    wanted = {entry.path: entry.bytes for entry in entries}

    def problems(folder: Path) -> dict[str, str]:
        return problems_of(
            entries, files.full(path), tree(folder), lambda entry: sha256_of(folder / entry.path)
        )

    try:
        folder = files.download(path, wanted)
        found = problems(folder)
        if found and not files.is_local:
            for name in found:
                (folder / name).unlink(missing_ok=True)
            found = problems(files.download(path, wanted))
    except Damaged as error:
        found = {"": str(error)}
    if found:
        raise UserError(f"{what} is damaged: {next(iter(found.values()))}. {fix}")
    return folder


# ---------------------------------------------------------------- all manifests
def list_manifests(files: Files, kind: str | None = None) -> Listed:
    """Paths of the manifests (of a kind), sorted.

    A store of the first version has a manifest in the folder of its key; it is named without an
    entry, and may not be there yet.
    """
    bases = [f"artifacts/{one}" for one in files.names("artifacts") if kind in (None, one)]
    found: Listed = {}
    for base, entries in zip(bases, parallel(files.listed, bases, files.threads), strict=True):
        shown = {each.path: each for each in entries if not each.hidden}
        for name, entry in shown.items():
            if name.endswith(".json"):
                found[f"{base}/{name}"] = entry
            elif entry.bytes is None and not entry.linked and f"{name}.json" not in shown:
                found[f"{base}/{name}/manifest.json"] = None
    return dict(sorted(found.items()))


def manifest_at(files: Files, path: str, data: bytes) -> Manifest:
    """Parse the manifest at a path of a store. Raises Damaged, also for another artifact's."""
    where = files.full(path)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        faults = {(each["loc"], each["type"]) for each in error.errors()}
        if (("schema_version",), "less_than_equal") in faults:
            update = "was written by a newer rlt; update this one (pip install -U)"
            raise Damaged(f"{where} {update}") from None
        raise Damaged(f"{where} is damaged: {reason(error)}. {RESTORE}") from None
    if path not in manifest.ref.manifests:
        named = f"{manifest.ref.kind}/{manifest.ref.key}"
        raise Damaged(f"{where} is damaged: it is the manifest of {named}. {RESTORE}")
    return manifest


def key_of(path: str) -> str:
    """Return the key in the path of a manifest."""
    return path.split("/")[2].removesuffix(".json")


def read_manifests(
    files: Files, kind: str | None = None, prefix: str = ""
) -> tuple[dict[str, Manifest], dict[str, str]]:
    """Return the committed artifacts (of a kind, whose keys begin so) by path of the manifest, and
    for each manifest that cannot be read a line that says why."""
    listed = list_manifests(files, kind)
    chosen = [path for path in listed if key_of(path).startswith(prefix)]
    copies, manifests = _copies(files, listed), {}
    for path in chosen:
        with suppress(KeyError, Damaged, FileNotFoundError):  # no copy, or a damaged one
            manifests[path] = manifest_at(files, path, copies[path].read_bytes())
    found, problems = files.load(
        (path for path in chosen if path not in manifests),
        lambda path, data: (manifest_at(files, path, data), data),
    )
    settled_ns = (time.time() - SETTLED_S) * 1e9
    for path, (manifest, data) in found.items():
        manifests[path] = manifest
        entry = listed[path]
        if path in copies and entry and entry.changed_ns < settled_ns:
            temporary = copies[path].with_name(f".{uuid.uuid4().hex}")
            temporary.write_bytes(data)
            temporary.replace(copies[path])
    return dict(sorted(manifests.items())), problems


def _copies(files: Files, listed: Listed) -> dict[str, Path]:
    """Return where local copies of a remote store's manifests are kept, by the manifest's path;
    delete the copies of manifests that were removed from the kinds that were listed."""
    if files.manifest_copies is None:
        return {}
    folder = files.manifest_copies
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        path: folder / f"{path.replace('/', '_')}.{entry.bytes}-{entry.changed_ns}"
        for path, entry in listed.items()
        if entry
    }
    kinds = tuple({f"{path.rpartition('/')[0].replace('/', '_')}_" for path in listed})
    for name in set(os.listdir(folder)).difference(copy.name for copy in found.values()):
        if name.startswith(kinds):
            (folder / name).unlink(missing_ok=True)
    return found
