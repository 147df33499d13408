"""All manifests of a store: a listing of each kind and, on S3, a local copy of each manifest.

A committed manifest never changes, so a copy with the listed size and time equals the file in the
store. Copies may be deleted at any time.
"""

import os
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress

from rlt_core.store.files import Damaged, Entry, Files, parallel
from rlt_core.store.manifest import RESTORE, Manifest

SETTLED_S = 10.0
"""A younger manifest is not copied: some servers report times in whole seconds, within which one
may be removed and written again with as many bytes."""


Listed = dict[str, Entry | None]
"""Path of a manifest -> its entry in the listing."""


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
    manifest = Manifest.parse(data, where)
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
    manifests = _read_copies(files, listed, chosen) if files.manifest_copies else {}
    found, problems = files.load(
        (path for path in chosen if path not in manifests),
        lambda path, data: (manifest_at(files, path, data), data),
    )
    for path, (manifest, data) in found.items():
        manifests[path] = manifest
        entry = listed[path]
        if files.manifest_copies and entry and entry.changed_ns / 1e9 < time.time() - SETTLED_S:
            temporary = files.manifest_copies / f".{uuid.uuid4().hex}"
            temporary.write_bytes(data)
            temporary.replace(files.manifest_copies / _name(path, entry))
    return dict(sorted(manifests.items())), problems


def _name(path: str, entry: Entry) -> str:
    """Return the name of a manifest's copy."""
    return f"{path.replace('/', '_')}.{entry.bytes}-{entry.changed_ns}"


def _read_copies(files: Files, listed: Listed, chosen: Iterable[str]) -> dict[str, Manifest]:
    """Return the chosen manifests that have an intact copy; delete the copies of manifests that
    were removed from the kinds that were listed."""
    folder = files.manifest_copies
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    there, found = set(os.listdir(folder)), {}
    names = {path: _name(path, entry) for path, entry in listed.items() if entry}
    for path in chosen:
        if (name := names.get(path)) in there:
            with suppress(Damaged, FileNotFoundError):  # damaged, or deleted by another process
                found[path] = manifest_at(files, path, (folder / str(name)).read_bytes())
    kinds = tuple({f"{path.rpartition('/')[0].replace('/', '_')}_" for path in listed})
    for name in there.difference(names.values()):
        if name.startswith(kinds):
            (folder / name).unlink(missing_ok=True)
    return found
