"""Shards and checkpoints of long work, each with its own commit, for the next attempt."""

import uuid
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from rlt_core.store.files import Damaged, Files
from rlt_core.store.lease import Lease
from rlt_core.store.manifest import AttemptId, FileEntry, describe_files, intact_copy


class _Part(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")

    folder: AttemptId
    files: list[FileEntry]
    metrics: dict[str, Any]


class Workspace:
    """`work/{key}` of a store: groups ("shards", "checkpoints") of named parts.

    A part exists once its own manifest does; files of an interrupted attempt are never seen.
    Zero-pad numbers in names, so that their order is the numeric one.
    """

    def __init__(self, files: Files, key: str) -> None:
        self._files = files
        self._key = key
        self._root = f"work/{key}"
        self._open: dict[tuple[str, str], str] = {}

    @property
    def folder(self) -> Path:
        """Local folder for what no other attempt needs."""
        return self._files.local(self._root)

    @property
    def store(self) -> Path:
        """Local folder of the store, or of its files that wait to be sent."""
        return self._files.local("")

    def _manifest_path(self, group: str, name: str) -> str:
        return f"{self._root}/{group}/{name}/manifest.json"

    def parts(self, group: str) -> list[str]:
        """Names of the committed parts of a group, sorted. Raises Damaged for one that cannot be
        read."""
        return list(self._read(group, self._files.names(f"{self._root}/{group}")))

    def has(self, group: str, name: str) -> bool:
        """Whether a part is committed."""
        return name in self._read(group, [name])

    def lease(self, group: str, name: str, waiting: Callable[[dict[str, object]], None]) -> Lease:
        """Return the lease of a part that several processes may compute."""
        return Lease(self._files, f"{self._key}/{group}/{name}", waiting=waiting)

    def is_leased(self, group: str, name: str) -> bool:
        """Whether a process is at a part."""
        return Lease.holder(self._files, f"{self._key}/{group}/{name}") is not None

    def _read(self, group: str, names: Iterable[str]) -> dict[str, _Part]:
        """Return those of these parts that are committed."""
        paths = {self._manifest_path(group, name): name for name in names}
        found, problems = self._files.load(paths, lambda _, data: _Part.model_validate_json(data))
        for path, problem in problems.items():
            raise Damaged(f"{problem}. {self._fix(group, paths[path])}")
        return {paths[path]: part for path, part in found.items()}

    def _fix(self, group: str, name: str) -> str:
        return f"Delete {self._files.full(f'{self._root}/{group}/{name}')} to redo this part."

    def begin(self, group: str, name: str) -> Path:
        """Return an empty local folder to fill, then `commit`."""
        folder = f"{self._root}/{group}/{name}/{uuid.uuid4().hex[:12]}"
        self._open[group, name] = folder
        return self._files.new_folder(folder)

    def commit(self, group: str, name: str, **metrics: Any) -> None:
        """Commit a part with its files' hashes and metrics (JSON values). The first commit wins."""
        folder = self._open.pop((group, name))
        entries = describe_files(self._files.local(folder))
        self._files.patiently(lambda: self._files.upload(folder))
        part = _Part(folder=folder.rpartition("/")[2], files=entries, metrics=metrics)
        path, data = self._manifest_path(group, name), part.model_dump_json().encode()
        self._files.patiently(lambda: self._files.create(path, data))

    def path(self, group: str, name: str) -> Path:
        """Return the local folder of a part. Raises KeyError if it is not committed, UserError if
        a file is damaged."""
        part = self._read(group, [name])[name]
        where = f"{self._root}/{group}/{name}/{part.folder}"
        fix = self._fix(group, name)
        return intact_copy(self._files, where, part.files, f"{group}/{name}", fix)

    def metrics(self, group: str, known: Container[str] = ()) -> dict[str, dict[str, Any]]:
        """The metrics that the parts of a group were committed with, without those known by
        name."""
        names = self._files.names(f"{self._root}/{group}")
        new = self._read(group, [name for name in names if name not in known])
        return {name: part.metrics for name, part in new.items()}

    def remove(self, group: str, name: str) -> None:
        """Delete a part, its manifest first."""
        self._files.remove(self._manifest_path(group, name))
        self._files.remove(f"{self._root}/{group}/{name}")
