"""Shards and checkpoints of long work, each with its own commit, for the next attempt."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlt_core.store.files import Files
from rlt_core.store.lease import Lease
from rlt_core.store.manifest import FileEntry, describe_files, intact_copy


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

    def _manifest_path(self, group: str, name: str) -> str:
        return f"{self._root}/{group}/{name}/manifest.json"

    def parts(self, group: str) -> list[str]:
        """Names of the committed parts of a group, sorted."""
        paths = self._files.expand(f"{self._root}/{group}/*/manifest.json")
        return [path.split("/")[-2] for path in self._files.read_many(paths)]

    def has(self, group: str, name: str) -> bool:
        """Whether a part is committed."""
        return self._read(group, name) is not None

    def lease(self, group: str, name: str, waiting: Callable[[dict[str, object]], None]) -> Lease:
        """Return the lease of a part that several processes may compute."""
        return Lease(self._files, f"{self._key}/{group}/{name}", waiting=waiting)

    def _read(self, group: str, name: str) -> dict[str, Any] | None:
        data = self._files.read(self._manifest_path(group, name))
        return None if data is None else json.loads(data)

    def _require(self, group: str, name: str) -> dict[str, Any]:
        manifest = self._read(group, name)
        if manifest is None:
            raise FileNotFoundError(f"{self._root}/{group}/{name} is not committed")
        return manifest

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
        manifest = {
            "folder": folder.rsplit("/", 1)[-1],
            "files": [entry.model_dump() for entry in entries],
            "metrics": metrics,
        }
        path, data = self._manifest_path(group, name), json.dumps(manifest).encode()
        self._files.patiently(lambda: self._files.create(path, data))

    def path(self, group: str, name: str) -> Path:
        """Return the local folder of a committed part. Raises UserError if a file is damaged."""
        manifest = self._require(group, name)
        entries = [FileEntry.model_validate(entry) for entry in manifest["files"]]
        where = f"{self._root}/{group}/{name}/{manifest['folder']}"
        fix = f"Delete {self._files.full(f'{self._root}/{group}/{name}')} to redo this part."
        return intact_copy(self._files, where, entries, f"{group}/{name}", fix)

    def manifest(self, group: str, name: str) -> dict[str, Any]:
        """The metrics that a part was committed with."""
        return dict(self._require(group, name)["metrics"])

    def remove(self, group: str, name: str) -> None:
        """Delete a part, its manifest first."""
        self._files.remove(self._manifest_path(group, name))
        self._files.remove(f"{self._root}/{group}/{name}")

    def copy_into(self, group: str, folder: Path) -> None:
        """Copy the files of all parts to `{folder}/{part}{suffix of the file}`, in order."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.parts(group):
            for file in sorted(self.path(group, name).iterdir()):
                shutil.copyfile(file, folder / f"{name}{file.suffix}")
