"""The store: find, begin, commit and verify artifacts, and delete what no manifest names."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rlt_core.errors import UserError
from rlt_core.store.files import Damaged, Files
from rlt_core.store.lease import Lease
from rlt_core.store.manifest import (
    FileEntry,
    Manifest,
    Ref,
    describe_files,
    intact_copy,
    problems_in_store,
)
from rlt_core.store.manifests import list_manifests, read_manifests
from rlt_core.store.workspace import Workspace

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


class Store:
    """Artifacts under a local folder or `s3://bucket/prefix`."""

    def __init__(self, root: str, cache: Path | None = None) -> None:
        self.files = open_files(root, cache)

    def __str__(self) -> str:
        return self.files.url

    # ------------------------------------------------------------ reading
    @staticmethod
    def _base(ref: Ref) -> str:
        return f"artifacts/{ref.kind}/{ref.key}"

    @classmethod
    def _paths(cls, ref: Ref) -> tuple[str, str]:
        """Paths of the manifest: in a store of today and in one of the first version."""
        return f"{cls._base(ref)}.json", f"{cls._base(ref)}/manifest.json"

    def folder(self, manifest: Manifest) -> str:
        """Folder of an artifact's files, relative to the store's root."""
        return f"{self._base(manifest.ref)}/{manifest.attempt}"

    def manifest(self, kind: str, key: str) -> Manifest | None:
        """The manifest of a committed artifact, or None."""
        return self.manifests_of([Ref(kind=kind, key=key)]).get(key)

    def manifests_of(self, refs: Iterable[Ref]) -> dict[str, Manifest]:
        """Return the manifests of committed artifacts, by key; read at the same time."""
        refs = list(refs)
        found: dict[str, Manifest] = {}
        for which in range(2):
            paths = {self._paths(ref)[which]: ref.key for ref in refs if ref.key not in found}
            read = self.files.read_many(paths).items()
            found |= {
                paths[path]: Manifest.parse(data, self.files.full(path)) for path, data in read
            }
        return {ref.key: found[ref.key] for ref in refs if ref.key in found}

    def manifests(self, kind: str | None = None) -> list[Manifest]:
        """Every committed artifact (of a kind) whose manifest can be read; others are logged."""
        manifests, problems = read_manifests(self.files, kind)
        for problem in problems.values():
            log.warning("%s", problem)
        return list(manifests.values())

    def find(self, prefix: str) -> Manifest:
        """The artifact with this key, unique beginning of a key, or ref name.

        Raises UserError if there is none or more than one.
        """
        if ref := self.ref(prefix):
            committed = list(self.manifests_of([ref]).values())
        else:
            paths = (_ref_of(path) for path in list_manifests(self.files))
            refs = [ref for ref in paths if ref.key.startswith(prefix)]
            committed = list(self.manifests_of(refs).values())
        if len(committed) == 1:
            return committed[0]
        if not committed:
            raise UserError(f"no artifact {prefix!r} in {self}; `rlt artifacts list` shows all")
        keys = ", ".join(manifest.ref.key for manifest in committed)
        raise UserError(f"{prefix!r} is the beginning of several keys: {keys}")

    def data_path(self, manifest: Manifest) -> str:
        """Folder of the artifact's files, as the store's file system sees it."""
        return self.files.full(self.folder(manifest))

    def local(self, manifest: Manifest) -> Path:
        """Local folder with the artifact's files; remote ones are fetched once.

        Raises UserError if a file is missing in the store.
        """
        sizes = {file.path: file.bytes for file in manifest.files}
        try:
            return self.files.download(self.folder(manifest), sizes)
        except Damaged as error:
            what, fix = self._name_and_fix(manifest)
            raise UserError(f"{what} is damaged: {error}. {fix}") from None

    def verify(self, manifest: Manifest, suffix: str = "") -> list[str]:
        """Hash every file (with this suffix) in the store; return one line per damaged file."""
        return problems_in_store(self.files, self.folder(manifest), manifest.only(suffix).files)

    def intact(self, manifest: Manifest, suffix: str = "") -> Path:
        """Return `local` of the files with this suffix, all of them hashed.

        Raises UserError that names a file that is damaged in the store, and the fix.
        """
        files = manifest.only(suffix).files
        return intact_copy(self.files, self.folder(manifest), files, *self._name_and_fix(manifest))

    @staticmethod
    def _name_and_fix(manifest: Manifest) -> tuple[str, str]:
        """The artifact in words, and how to replace it if it is damaged."""
        key = manifest.ref.key
        fix = f"Remove it with `rlt artifacts remove {key}` and run again."
        return f"artifact {manifest.label} ({key})", fix

    # ------------------------------------------------------------ writing
    def begin(self, ref: Ref) -> Attempt:
        """Begin an attempt at an artifact."""
        attempt = uuid.uuid4().hex[:12]
        out = self.files.new_folder(f"{self._base(ref)}/{attempt}")
        return Attempt(ref=ref, id=attempt, out=out)

    def describe(self, attempt: Attempt) -> list[FileEntry]:
        """Return the files of an attempt, hashed and counted, for its manifest."""
        return describe_files(attempt.out)

    def commit(self, manifest: Manifest) -> Manifest:
        """Make an attempt the artifact and drop the key's workspace.

        Returns the artifact's manifest: another attempt's, if that one was first.
        """
        self.files.patiently(lambda: self.files.upload(self.folder(manifest)))
        if not self.files.patiently(lambda: self.publish(manifest)):
            self.files.remove(self.folder(manifest))
        committed = self.manifest(manifest.ref.kind, manifest.ref.key)
        assert committed is not None
        for group in self.files.names(f"work/{manifest.ref.key}"):
            if group != "lease.json":
                self.files.remove(f"work/{manifest.ref.key}/{group}")
        return committed

    def publish(self, manifest: Manifest) -> bool:
        """Create the manifest; False if another attempt's was first."""
        data = manifest.model_dump_json(indent=1).encode()
        return self.files.create(self._paths(manifest.ref)[0], data)

    def abandon(self, attempt: Attempt) -> None:
        """Delete an attempt that will not be committed."""
        self.files.remove(f"{self._base(attempt.ref)}/{attempt.id}")
        self.files.prune(self._base(attempt.ref))

    def remove(self, ref: Ref) -> None:
        """Delete an artifact, its manifest first, and its workspace."""
        for path in self._paths(ref):
            self.files.remove(path)
        self.files.remove(self._base(ref))
        self.files.remove(f"work/{ref.key}")

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
        """Give an artifact a human name; an existing name moves."""
        self.files.write(f"refs/{name}.json", ref.model_dump_json().encode())

    def ref(self, name: str) -> Ref | None:
        """The artifact with this name, or None."""
        data = self.files.read(f"refs/{name}.json")
        return Ref.model_validate_json(data) if data else None

    def refs(self) -> dict[str, Ref]:
        """All names and their artifacts."""
        paths = [f"refs/{path}" for path in self.files.walk("refs") if path.endswith(".json")]
        return {
            path.removeprefix("refs/")[:-5]: Ref.model_validate_json(data)
            for path, data in self.files.read_many(paths).items()
        }

    # ------------------------------------------------------------ garbage
    def working(self) -> dict[str, dict[str, object]]:
        """Keys that are being computed now, with their leases."""
        return Lease.read_all(self.files)

    def unfinished(self) -> dict[str, str]:
        """Keys with unfinished work that is not being computed now, with their nodes' names."""
        working = self.working()
        found = self.files.read_many(self.files.expand("work/*/node.txt"))
        names = {path.split("/")[1]: data.decode() for path, data in found.items()}
        return {key: name for key, name in names.items() if key not in working}

    def orphans(self) -> list[Orphan]:
        """Attempts that no manifest names, and workspaces of committed keys. Keys with a lease, and
        keys whose manifest cannot be read, are left alone.

        The order matters: files are listed before leases are read, and leases before manifests, so
        that an attempt under way is never taken for an orphan.
        """
        made = {
            (kind, *path.split("/")): size
            for kind in self.files.names("artifacts")
            for path, size in self.files.usage(f"artifacts/{kind}", 2).items()
        }
        workspaces = self.files.usage("work", 1)
        working = self.working()
        manifests, problems = read_manifests(self.files)
        committed = {(one.ref.kind, one.ref.key): one.attempt for one in manifests.values()}
        kept = {*working, *(_ref_of(path).key for path in problems)}
        found = [
            Orphan(f"artifacts/{kind}/{key}/{name}", size)
            for (kind, key, name), size in made.items()
            if key not in kept and name not in ("manifest.json", committed.get((kind, key)))
        ]
        keys = {key for _, key in committed}
        return found + [
            Orphan(f"work/{key}", size)
            for key, size in workspaces.items()
            if key in keys and key not in working
        ]

    def gc(self) -> list[Orphan]:
        """Delete the orphans; returns what was deleted. Unfinished work is kept."""
        orphans = self.orphans()
        for orphan in orphans:
            self.files.remove(orphan.path)
        return orphans


def _ref_of(path: str) -> Ref:
    """The artifact whose manifest has this path."""
    _, kind, key, *_ = path.removesuffix(".json").split("/")
    return Ref(kind=kind, key=key)


def open_files(root: str, cache: Path | None = None) -> Files:
    """Return the files of a folder or of `s3://bucket/prefix`. Raises UserError for another URL.

    `cache`: where copies of remote files live; by default below XDG_CACHE_HOME.
    """
    if root.startswith(("s3:", "s3a:")) or "://" in root:
        from rlt_core.store.s3_files import S3Files

        return S3Files(root, cache)
    return Files(root)
