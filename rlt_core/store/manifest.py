"""What a committed artifact says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from rlt_core.errors import UserError
from rlt_core.store.files import entries_of, sha256_of


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

    schema_version: int = 1
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
    """Versions of what computed it."""
    git_commit: str | None
    flow_run_id: str | None
    started_at: datetime
    finished_at: datetime
    seconds: float
    gpu_seconds: float
    device: str
    threads: int

    def only(self, suffix: str) -> Manifest:
        """The manifest with the files of this suffix alone."""
        files = [file for file in self.files if file.path.endswith(suffix)]
        return self.model_copy(update={"files": files})

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def rows(self) -> int:
        """Rows of all Parquet files."""
        return sum(file.rows or 0 for file in self.files)


def describe_files(folder: Path) -> list[FileEntry]:
    """Hash and count every file of a local folder."""
    return [
        FileEntry(path=path, sha256=sha256, bytes=size, rows=rows)
        for path, sha256, size, rows in entries_of(folder)
    ]


def problems_of(folder: Path, files: Sequence[FileEntry]) -> list[str]:
    """What is wrong with a local copy: one line a missing, resized or altered file."""
    found = []
    for entry in files:
        path = folder / entry.path
        if not path.is_file():
            found.append(f"{path}: missing")
        elif path.stat().st_size != entry.bytes:
            found.append(f"{path}: {path.stat().st_size} bytes, {entry.bytes} when committed")
        elif sha256_of(path) != entry.sha256:
            found.append(f"{path}: altered since it was committed (sha256 differs)")
    return found


def require_intact(folder: Path, files: Sequence[FileEntry], what: str, mend: str) -> None:
    """Raise UserError naming the first damaged file."""
    if problems := problems_of(folder, files):
        raise UserError(f"{what} is damaged: {problems[0]}. {mend}")
