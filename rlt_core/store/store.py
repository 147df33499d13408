"""The store: find, begin, commit and verify artifacts, and delete what no manifest names."""

import logging
import re
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import get_args

from rlt_core.errors import UserError
from rlt_core.names import is_relative
from rlt_core.store.files import LINKED, Damaged, Files
from rlt_core.store.lease import Lease
from rlt_core.store.manifest import (
    ATTEMPT,
    KEY,
    FileEntry,
    Kind,
    Manifest,
    Ref,
    describe_files,
    intact_copy,
    key_of,
    manifest_at,
    problems_of,
    read_manifests,
)
from rlt_core.store.workspace import Workspace

NAMED = rb"(?<![0-9a-f])[0-9a-f]{16}(?![0-9a-f])"
"""A key in the text of a manifest."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """One attempt at computing an artifact: a folder that does not count until it is committed."""

    ref: Ref
    id: str
    out: Path
    """Local folder to write the artifact's files in."""


@dataclass(frozen=True)
class Orphan:
    """Files that no manifest names."""

    path: str
    bytes: int
    ref: Ref | None = None
    """The artifact that it belonged to; None for a temporary file."""


class Store:
    """Artifacts under a local folder or `s3://bucket/prefix`.

    `cache`: folder of copies of remote files, by default below XDG_CACHE_HOME. Raises UserError for
    another URL.
    """

    def __init__(self, root: str, cache: Path | None = None) -> None:
        if root.startswith(("s3:", "s3a:")) or "://" in root:
            from rlt_core.store.s3_files import S3Files

            self.files: Files = S3Files(root, cache)
        else:
            self.files = Files(root)

    def __str__(self) -> str:
        return self.files.url

    # ------------------------------------------------------------ reading
    def folder(self, manifest: Manifest) -> str:
        """Folder of an artifact's files, relative to the store's root."""
        return f"{manifest.ref.folder}/{manifest.attempt}"

    def manifest(self, kind: Kind, key: str) -> Manifest | None:
        """The manifest of a committed artifact, or None. Raises Damaged if it cannot be read."""
        return self.manifests_of([Ref(kind=kind, key=key)]).get(key)

    def manifests_of(self, refs: Iterable[Ref]) -> dict[str, Manifest]:
        """Return the manifests of committed artifacts, by key; read at the same time.

        Raises Damaged if one cannot be read.
        """
        refs = list(refs)
        found: dict[str, Manifest] = {}
        for which in range(2):
            read, problems = self.files.load(
                (ref.manifests[which] for ref in refs if ref.key not in found),
                lambda path, data: manifest_at(self.files, path, data),
            )
            for problem in problems.values():
                raise Damaged(problem)
            found |= {manifest.ref.key: manifest for manifest in read.values()}
        return {ref.key: found[ref.key] for ref in refs if ref.key in found}

    def manifests(self, kind: str | None = None) -> list[Manifest]:
        """Every committed artifact (of a kind) whose manifest can be read; others are logged."""
        manifests, problems = read_manifests(self.files, kind)
        _warn(problems)
        return list(manifests.values())

    def find(self, name: str, kind: Kind | None = None) -> Manifest:
        """The artifact with this key, unique beginning of a key, or ref name.

        Raises UserError if there is none, more than one or one of another kind, Damaged if it
        cannot be read.
        """
        ref = self.ref(name)
        prefix = ref.key if ref else name
        found, problems = read_manifests(self.files, ref.kind if ref else None, prefix)
        keys = [key_of(path) for path in (*found, *problems)]
        if not keys:
            close = get_close_matches(prefix, self.refs(), n=1)
            hint = f"did you mean {close[0]!r}?" if close else "`rlt artifacts list` shows all"
            raise UserError(f"no artifact {prefix!r} in {self}; {hint}")
        if len(keys) > 1:
            raise UserError(f"{prefix!r} begins {len(keys)} keys: {', '.join(keys[:8])}")
        for problem in problems.values():
            raise Damaged(problem)
        [manifest] = found.values()
        if kind and manifest.ref.kind != kind:
            near = manifest.inputs.get(kind)
            fix = f"its {kind}: {near.key}" if near else "`rlt artifacts list` shows all"
            raise UserError(f"artifact {name!r} is of kind {manifest.ref.kind}, not {kind}; {fix}")
        return manifest

    def data_path(self, manifest: Manifest) -> str:
        """Folder of the artifact's files, as the store's file system sees it."""
        return self.files.full(self.folder(manifest))

    def verify(self, manifest: Manifest) -> list[str]:
        """Hash every file in the store; return one line per damaged file."""
        files, folder = self.files, self.folder(manifest)

        def sha256(entry: FileEntry) -> str:
            try:
                return files.sha256(f"{folder}/{entry.path}", entry.bytes)
            except (Damaged, OSError) as error:  # it has gone meanwhile, or the disk is broken
                return str(error)

        where, listed = files.full(folder), files.listed(folder, deep=True)
        linked = [f"{where}/{each.path} {LINKED}" for each in listed if each.linked]
        found = problems_of(manifest.files, where, files.sizes(folder), sha256)
        return [*linked, *found.values()]

    def intact(self, manifest: Manifest, suffix: str = "") -> Path:
        """Return a local folder with the artifact's files (with this suffix), all of them hashed;
        remote ones are fetched once.

        Raises UserError that names a file that is damaged in the store, and the fix.
        """
        key, files = manifest.ref.key, [one for one in manifest.files if one.path.endswith(suffix)]
        what = f"artifact {manifest.label} ({key})"
        fix = f"Remove it with `rlt artifacts remove {key}` and run again."
        return intact_copy(self.files, self.folder(manifest), files, what, fix)

    # ------------------------------------------------------------ writing
    def begin(self, ref: Ref) -> Attempt:
        attempt = uuid.uuid4().hex[:12]
        out = self.files.new_folder(f"{ref.folder}/{attempt}")
        return Attempt(ref=ref, id=attempt, out=out)

    def describe(self, attempt: Attempt) -> list[FileEntry]:
        """Return the files of an attempt, hashed and counted, for its manifest."""
        return describe_files(attempt.out)

    def commit(self, manifest: Manifest) -> Manifest:
        """Make an attempt the artifact and drop the key's workspace.

        Returns the artifact's manifest: another attempt's, if that one was first.
        """
        ref = manifest.ref
        self.files.patiently(lambda: self.files.upload(self.folder(manifest)))
        while not self.files.patiently(lambda: self.publish(manifest)):
            if self.manifest(ref.kind, ref.key):  # else it was removed meanwhile
                self.files.remove(self.folder(manifest))
                break
        self._drop_work(ref.key)
        return self.manifest(ref.kind, ref.key) or manifest

    def publish(self, manifest: Manifest) -> bool:
        """Create the manifest; False if another attempt's was first."""
        data = manifest.model_dump_json(indent=1).encode()
        return self.files.create(manifest.ref.manifests[0], data)

    def abandon(self, attempt: Attempt) -> None:
        """Delete an attempt that will not be committed."""
        self.files.remove(f"{attempt.ref.folder}/{attempt.id}")
        self.files.prune(attempt.ref.folder)

    def remove(self, ref: Ref) -> None:
        """Delete an artifact, its manifest first, and its workspace."""
        with Lease(self.files, ref.key, "removal"):
            for path in (*ref.manifests, ref.folder):
                self.files.remove(path)
            self._drop_work(ref.key)

    def _drop_work(self, key: str) -> None:
        """Delete the workspace of a key; its lease stays."""
        for group in self.files.names(f"work/{key}"):
            if group != "lease.json":
                self.files.remove(f"work/{key}/{group}")

    def forget(self, key: str) -> None:
        """Delete the log and name that a mistake left in a key's workspace; shards and checkpoints
        stay."""
        for name in ("node.txt", "log.txt"):
            self.files.remove(f"work/{key}/{name}")
        self.files.prune(f"work/{key}")

    def workspace(self, key: str) -> Workspace:
        """Where long work on a key leaves shards and checkpoints."""
        return Workspace(self.files, key)

    # ------------------------------------------------------------ refs
    def set_ref(self, name: str, ref: Ref) -> None:
        """Give an artifact a human name; an existing name moves. Raises Damaged for a name that
        is no path."""
        self.files.write(f"refs/{name}.json", ref.model_dump_json().encode())

    def ref(self, name: str) -> Ref | None:
        """The artifact with this name, or None; a damaged ref is logged."""
        return self._refs([f"refs/{name}.json"]).get(name) if is_relative(name) else None

    def refs(self) -> dict[str, Ref]:
        """All names and their artifacts; damaged refs are logged."""
        return self._refs(f"refs/{path}" for path in self.files.walk("refs"))

    def _refs(self, paths: Iterable[str]) -> dict[str, Ref]:
        found, problems = self.files.load(
            (path for path in paths if path.endswith(".json")),
            lambda _, data: Ref.model_validate_json(data),
        )
        _warn({path: f"{line}; the next run renews this name" for path, line in problems.items()})
        return {path.removeprefix("refs/")[:-5]: ref for path, ref in found.items()}

    # ------------------------------------------------------------ garbage
    def working(self) -> dict[str, dict[str, object]]:
        """Keys that are being computed now, with their leases; damaged leases are logged."""
        leases, problems = Lease.read_all(self.files)
        _warn(problems)
        return leases

    def unfinished(self) -> dict[str, str]:
        """Keys with unfinished work that is not being computed now, with their nodes' names."""
        working = self.working()
        paths = [f"work/{key}/node.txt" for key in self.files.names("work")]
        found, problems = self.files.load(paths, lambda _, data: data.decode())
        _warn(problems)
        names = {path.split("/")[1]: name for path, name in found.items()}
        return {key: name for key, name in names.items() if key not in working}

    def orphans(self) -> list[Orphan]:
        """Attempts that no manifest names, workspaces of committed keys, and temporary files that a
        crash left. Keys with a lease are left alone, and so is all that a manifest or lease that
        cannot be read may be about.

        The order matters: files are listed before leases are read, and leases before manifests, so
        that an attempt under way is never taken for an orphan.
        """
        made = {
            (kind, *path.split("/")): size
            for kind in get_args(Kind)
            for path, size in self.files.usage(f"artifacts/{kind}", 2).items()
        }
        workspaces, leftovers = self.files.usage("work", 1), self.files.leftovers()
        working, unreadable = Lease.read_all(self.files)
        manifests, problems = read_manifests(self.files)
        _warn(unreadable | problems)
        committed = {one.ref: one for one in manifests.values()}
        named = self._named_in(problems) - {ref.key for ref in committed}
        kept = {*working, *unreadable, *map(key_of, problems), *named}
        found = []
        for (kind, key, name), size in made.items():
            is_attempt = re.fullmatch(KEY, key) and re.fullmatch(ATTEMPT, name)
            if is_attempt and key not in kept:
                ref = Ref(kind=kind, key=key)
                if ref not in committed or committed[ref].attempt != name:
                    found.append(Orphan(f"{ref.folder}/{name}", size, ref))
        found += [
            Orphan(f"work/{ref.key}", workspaces[ref.key], ref)
            for ref in committed
            if ref.key in workspaces and ref.key not in kept
        ]
        for one in committed.values() if leftovers else ():
            for file in one.files:
                leftovers.pop(f"{self.folder(one)}/{file.path}", None)
        return found + [Orphan(path, size) for path, size in leftovers.items()]

    def _named_in(self, manifests: Iterable[str]) -> set[str]:
        """Return the keys that stand in manifests that cannot be parsed."""
        found: set[str] = set()
        for path in manifests:
            with suppress(Damaged):
                text = self.files.read(path) or b""
                found.update(key.decode() for key in re.findall(NAMED, text))
        return found

    def gc(self) -> list[Orphan]:
        """Delete the orphans; returns what was deleted. Unfinished work is kept, leases of dead
        holders are ended."""
        deleted = [orphan for orphan in self.orphans() if self._collect(orphan)]
        live, unreadable = Lease.read_all(self.files)
        for path in self.files.usage("work", 2):
            key, _, name = path.partition("/")
            if name == "lease.json" and key not in live and key not in unreadable:
                with suppress(_Held), Lease(self.files, key, "gc", _held):
                    pass
        return deleted

    def _collect(self, orphan: Orphan) -> bool:
        """Delete an orphan under the lease of its key; False if it is none any more."""
        ref = orphan.ref
        if ref is None:
            self.files.remove(orphan.path)
            return True
        try:
            with suppress(_Held), Lease(self.files, ref.key, "gc", _held):
                committed = self.manifest(ref.kind, ref.key)
                if orphan.path == f"work/{ref.key}":
                    if committed:
                        self._drop_work(ref.key)
                        return True
                elif not committed or self.folder(committed) != orphan.path:
                    self.files.remove(orphan.path)
                    self.files.prune(ref.folder)
                    return True
        except Damaged as problem:
            log.warning("%s stays: %s", orphan.path, problem)
        return False


class _Held(Exception):
    """Another process works on the key."""


def _held(_: object) -> None:
    raise _Held


def _warn(problems: Mapping[str, str]) -> None:
    for problem in problems.values():
        log.warning("%s", problem)
