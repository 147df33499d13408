"""All manifests of a store: a listing of each kind and, on S3, a local copy of each manifest.

A committed manifest never changes, so a copy with the listed size and time equals the file in the
store. Copies may be deleted at any time.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from rlt_core.errors import UserError
from rlt_core.store.files import Entry, Files, parallel
from rlt_core.store.manifest import Manifest

SETTLED_S = 10.0
"""A younger manifest is not copied: some servers report times in whole seconds, within which one
may be removed and written again with as many bytes."""


def list_manifests(files: Files, kind: str | None = None) -> dict[str, Entry | None]:
    """Paths of the manifests (of a kind), sorted.

    A store of the first version has a manifest in the folder of its key; it is named without an
    entry, and may not be there yet.
    """
    bases = [f"artifacts/{one}" for one in files.names("artifacts") if kind in (None, one)]
    found: dict[str, Entry | None] = {}
    for base, entries in zip(bases, parallel(files.listed, bases, files.threads), strict=True):
        shown = {each.path: each for each in entries if not each.hidden}
        for name, entry in shown.items():
            if entry.bytes is None and f"{name}.json" not in shown:
                found[f"{base}/{name}/manifest.json"] = None
            elif entry.bytes is not None and name.endswith(".json"):
                found[f"{base}/{name}"] = entry
    return dict(sorted(found.items()))


def read_manifests(
    files: Files, kind: str | None = None
) -> tuple[dict[str, Manifest], dict[str, str]]:
    """Return the committed artifacts (of a kind) by path of the manifest, and for each manifest
    that cannot be read a line that says why."""
    listed = list_manifests(files, kind)
    copies = _Copies(files.manifest_copies) if files.manifest_copies else None
    manifests = copies.read(listed) if copies else {}
    problems: dict[str, str] = {}
    documents = files.read_many(path for path in listed if path not in manifests)
    for path, data in documents.items():
        try:
            manifests[path] = Manifest.parse(data, files.full(path))
        except UserError as error:
            problems[path] = str(error)
    if copies:
        copies.keep(listed, {path: documents[path] for path in documents if path in manifests})
    return dict(sorted(manifests.items())), problems


class _Copies:
    """Copies of manifests in a local folder, each named by path, size and time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def _name(path: str, entry: Entry) -> str:
        return f"{path.replace('/', '_')}.{entry.bytes}-{entry.changed_ns}"

    def read(self, listed: dict[str, Entry | None]) -> dict[str, Manifest]:
        """Return the manifests that have an intact copy; delete copies of removed manifests."""
        there = set(os.listdir(self._folder))
        names = {self._name(path, entry) for path, entry in listed.items() if entry}
        kinds = tuple({f"{path.rpartition('/')[0].replace('/', '_')}_" for path in listed})
        for name in there - names:
            if name.startswith(kinds):
                (self._folder / name).unlink(missing_ok=True)
        found: dict[str, Manifest] = {}
        for path, entry in listed.items():
            if entry is None or (name := self._name(path, entry)) not in there:
                continue
            try:
                found[path] = Manifest.parse((self._folder / name).read_bytes(), name)
            except (UserError, FileNotFoundError):  # damaged, or deleted by another process
                continue
        return found

    def keep(self, listed: dict[str, Entry | None], documents: dict[str, bytes]) -> None:
        """Copy manifests that were read, each atomically."""
        for path, data in documents.items():
            entry = listed[path]
            if entry is None or entry.changed_ns / 1e9 > time.time() - SETTLED_S:
                continue
            temporary = self._folder / f".{uuid.uuid4().hex}"
            temporary.write_bytes(data)
            temporary.replace(self._folder / self._name(path, entry))
