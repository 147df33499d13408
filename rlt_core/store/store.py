"""The store: find, begin, commit, verify, collect."""

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
    """One try at computing an artifact: a folder that is nothing until it is committed."""

    ref: Ref
    id: str
    out: Path
    """Local folder to write the artifact's files in."""


@dataclass(frozen=True)
class Orphan:
    """Something that no manifest names."""

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
        """Where the manifest is, and where stores of the first months have it."""
        return f"{cls._base(ref)}.json", f"{cls._base(ref)}/manifest.json"

    def folder(self, manifest: Manifest) -> str:
        """Folder of an artifact's files, relative to the store's root."""
        return f"{self._base(manifest.ref)}/{manifest.attempt}"

    def manifest(self, kind: str, key: str) -> Manifest | None:
        """The manifest of a committed artifact, or None."""
        return self.manifests_of([Ref(kind=kind, key=key)]).get(key)

    def manifests_of(self, refs: Iterable[Ref]) -> dict[str, Manifest]:
        """The manifests of those that are committed, by key; read at the same time."""
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

        Raises UserError if one is missing in the store.
        """
        sizes = {file.path: file.bytes for file in manifest.files}
        try:
            return self.files.download(self.folder(manifest), sizes)
        except Damaged as error:
            what, mend = self._blame(manifest)
            raise UserError(f"{what} is damaged: {error}. {mend}") from None

    def verify(self, manifest: Manifest, suffix: str = "") -> list[str]:
        """Re-hash every file (with this suffix) in the store; one line a damaged one."""
        return problems_in_store(self.files, self.folder(manifest), manifest.only(suffix).files)

    def intact(self, manifest: Manifest, suffix: str = "") -> Path:
        """`local` of the files with this suffix, all of them hashed.

        Raises UserError naming a file that is damaged in the store and the mend.
        """
        files = manifest.only(suffix).files
        return intact_copy(self.files, self.folder(manifest), files, *self._blame(manifest))

    @staticmethod
    def _blame(manifest: Manifest) -> tuple[str, str]:
        """What is damaged, and how to mend it."""
        key = manifest.ref.key
        mend = f"Remove it with `rlt artifacts remove {key}` and run again."
        return f"artifact {manifest.label} ({key})", mend

    # ------------------------------------------------------------ writing
    def begin(self, ref: Ref) -> Attempt:
        """A new attempt at an artifact."""
        attempt = uuid.uuid4().hex[:12]
        out = self.files.new_folder(f"{self._base(ref)}/{attempt}")
        return Attempt(ref=ref, id=attempt, out=out)

    def describe(self, attempt: Attempt) -> list[FileEntry]:
        """The files of an attempt, hashed and counted, for its manifest."""
        return describe_files(attempt.out)

    def commit(self, manifest: Manifest) -> Manifest:
        """Make an attempt the artifact and drop the key's workspace.

        Returns the manifest that stands: another attempt's if that one was first.
        """
        self.files.patiently(lambda: self.files.upload(self.folder(manifest)))
        if not self.files.patiently(lambda: self.publish(manifest)):
            self.files.remove(self.folder(manifest))
        standing = self.manifest(manifest.ref.kind, manifest.ref.key)
        assert standing is not None
        for group in self.files.names(f"work/{manifest.ref.key}"):
            if group != "lease.json":
                self.files.remove(f"work/{manifest.ref.key}/{group}")
        return standing

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
        """Drop what a mistake left in a key's workspace; shards and checkpoints stay."""
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
        """What a name stands for."""
        data = self.files.read(f"refs/{name}.json")
        return Ref.model_validate_json(data) if data else None

    def refs(self) -> dict[str, Ref]:
        """All names."""
        paths = [f"refs/{path}" for path in self.files.walk("refs") if path.endswith(".json")]
        return {
            path.removeprefix("refs/")[:-5]: Ref.model_validate_json(data)
            for path, data in self.files.read_many(paths).items()
        }

    # ------------------------------------------------------------ garbage
    def working(self) -> dict[str, dict[str, object]]:
        """Keys that somebody works on right now, with their leases."""
        return Lease.read_all(self.files)

    def unfinished(self) -> dict[str, str]:
        """Keys with work that nobody goes on with right now, with their nodes' names."""
        working = self.working()
        found = self.files.read_many(self.files.expand("work/*/node.txt"))
        names = {path.split("/")[1]: data.decode() for path, data in found.items()}
        return {key: name for key, name in names.items() if key not in working}

    def orphans(self) -> list[Orphan]:
        """Attempts that no manifest names and workspaces of committed keys, minding leases. What a
        manifest that cannot be read may name is kept.

        Looked at in this order: what an attempt has that is under way is listed before its lease
        is read, and its lease before its manifest, so that it is never taken for an orphan.
        """
        made = {
            (kind, *path.split("/")): size
            for kind in self.files.names("artifacts")
            for path, size in self.files.usage(f"artifacts/{kind}", 2).items()
        }
        workspaces = self.files.usage("work", 1)
        working = self.working()
        manifests, problems = read_manifests(self.files)
        standing = {(one.ref.kind, one.ref.key): one.attempt for one in manifests.values()}
        kept = {*working, *(_ref_of(path).key for path in problems)}
        found = [
            Orphan(f"artifacts/{kind}/{key}/{name}", size)
            for (kind, key, name), size in made.items()
            if key not in kept and name not in ("manifest.json", standing.get((kind, key)))
        ]
        committed = {key for _, key in standing}
        return found + [
            Orphan(f"work/{key}", size)
            for key, size in workspaces.items()
            if key in committed and key not in working
        ]

    def gc(self) -> list[Orphan]:
        """Delete the orphans; returns what was deleted. Unfinished work is kept."""
        orphans = self.orphans()
        for orphan in orphans:
            self.files.remove(orphan.path)
        return orphans


def _ref_of(path: str) -> Ref:
    """The artifact of a manifest's path."""
    _, kind, key, *_ = path.removesuffix(".json").split("/")
    return Ref(kind=kind, key=key)


def open_files(root: str, cache: Path | None = None) -> Files:
    """A folder's or, for `s3://bucket/prefix`, S3's. Raises UserError for any other root.

    `cache`: where copies of remote files live; by default below XDG_CACHE_HOME.
    """
    if root.startswith(("s3:", "s3a:")) or "://" in root:
        from rlt_core.store.s3_files import S3Files

        return S3Files(root, cache)
    return Files(root)
