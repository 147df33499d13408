"""Copies of artifacts between two stores, each a folder or on S3.

As in a run, files come first and the manifest last, create-only. An interrupted copy continues
where it stopped, and every file is hashed at the target before the manifest is written.
"""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from rlt_core.environment import DiskFull, is_full
from rlt_core.store.files import Damaged, parallel
from rlt_core.store.lease import Lease
from rlt_core.store.manifest import FileEntry, Manifest, key_of, read_manifests
from rlt_core.store.store import Store

FILES_AT_ONCE = 16


class CopyFailed(Exception):
    """An artifact could not be copied; the message names it and says why."""


def with_inputs(store: Store, chosen: Iterable[Manifest]) -> tuple[list[Manifest], list[str]]:
    """Return artifacts with all their inputs, inputs first, each once; and one line for every input
    that is no longer in the store or cannot be read."""
    manifests, problems = read_manifests(store.files)
    known = {manifest.ref.key: manifest for manifest in manifests.values()}
    unreadable = {key_of(path): problem for path, problem in problems.items()}
    ordered: dict[str, Manifest] = {}
    gone: dict[str, str] = {}
    seen: set[str] = set()  # a damaged store may have a circle

    def visit(manifest: Manifest) -> None:
        if manifest.ref.key in seen:
            return
        seen.add(manifest.ref.key)
        for name, ref in manifest.inputs.items():
            if ref.key in known:
                visit(known[ref.key])
            else:
                line = f"input {name} ({ref.key}) of {manifest.label} is not in {store}"
                gone[ref.key] = unreadable.get(ref.key, line)
        ordered[manifest.ref.key] = manifest

    for manifest in chosen:
        visit(manifest)
    return list(ordered.values()), list(gone.values())


def copy_artifact(
    source: Store,
    target: Store,
    manifest: Manifest,
    advance: Callable[[int], None] = lambda _: None,
    waiting: Callable[[dict[str, object]], None] = lambda _: None,
) -> bool:
    """Copy an artifact; False if the target has it already.

    `advance` is called with the bytes of each file that has arrived, from several threads,
    `waiting(lease)` while another process works on the key at the target. Raises CopyFailed if a
    file is damaged at the source or on its way.
    """
    ref, folder = manifest.ref, source.folder(manifest)

    def copy(entry: FileEntry) -> None:
        path = f"{folder}/{entry.path}"
        if source.files.is_local:
            target.files.put(source.files.local(path), path)
        elif target.files.is_local:
            with target.files.changing():
                source.files.fetch(path, entry.bytes, target.files.local(path))
        else:
            with tempfile.TemporaryDirectory() as between:
                source.files.fetch(path, entry.bytes, Path(between) / "copy")
                target.files.put(Path(between) / "copy", path)
        advance(entry.bytes)

    with Lease(target.files, ref.key, f"copy of {manifest.label}", waiting):
        if target.manifest(ref.kind, ref.key):
            return False
        there = target.files.sizes(folder)
        rest = [entry for entry in manifest.files if there.get(entry.path) != entry.bytes]
        advance(manifest.bytes - sum(entry.bytes for entry in rest))
        try:
            for missing in (rest, manifest.files):  # what was there already may be damaged
                if source.files.is_local:
                    source.files.download(folder, {each.path: each.bytes for each in missing})
                parallel(copy, missing, FILES_AT_ONCE)
                if target.files.is_local:
                    target.files.upload(folder)
                if not (problems := target.verify(manifest)):
                    return target.publish(manifest)
        except (Damaged, OSError) as error:
            if isinstance(error, DiskFull) or is_full(error):
                raise
            raise CopyFailed(f"{manifest.label} ({ref.key}): {error}") from None
        target.files.remove(folder)
        raise CopyFailed(
            f"{manifest.label} ({ref.key}): {problems[0]}. "
            f"`rlt artifacts verify {ref.key} --store {source}` says whether its source is damaged"
        )
