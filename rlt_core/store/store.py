"""The store: find, begin, commit, verify, collect."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from rlt_core.errors import UserError
from rlt_core.store.files import Files
from rlt_core.store.lease import Lease
from rlt_core.store.manifest import FileEntry, Manifest, Ref, describe_files, problems_of
from rlt_core.store.workspace import Workspace


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
        self.files = Files(root, cache)

    def __str__(self) -> str:
        return self.files.url

    # ------------------------------------------------------------ reading
    @staticmethod
    def _base(ref: Ref) -> str:
        return f"artifacts/{ref.kind}/{ref.key}"

    def manifest(self, kind: str, key: str) -> Manifest | None:
        """The manifest of a committed artifact, or None."""
        path = f"{self._base(Ref(kind=kind, key=key))}/manifest.json"
        data = self.files.read(path)
        if data is None:
            return None
        try:
            return Manifest.model_validate_json(data)
        except ValidationError as error:
            raise UserError(
                f"{self.files.full(path)} is damaged: {error.errors()[0]['msg']}. Delete this file "
                "and run again: the artifact is computed anew."
            ) from None

    def manifests(self) -> Iterator[Manifest]:
        """Every committed artifact."""
        for kind in self.files.names("artifacts"):
            for key in self.files.names(f"artifacts/{kind}"):
                if manifest := self.manifest(kind, key):
                    yield manifest

    def find(self, prefix: str) -> Manifest:
        """The artifact with this key, unique beginning of a key, or ref name.

        Raises UserError if there is none or more than one.
        """
        if ref := self.ref(prefix):
            found = [self.manifest(ref.kind, ref.key)]
        else:
            found = [
                self.manifest(kind, key)
                for kind in self.files.names("artifacts")
                for key in self.files.names(f"artifacts/{kind}")
                if key.startswith(prefix)
            ]
        committed = [manifest for manifest in found if manifest]
        if len(committed) == 1:
            return committed[0]
        if not committed:
            raise UserError(f"no artifact {prefix!r} in {self}; `rlt artifacts list` shows all")
        keys = ", ".join(manifest.ref.key for manifest in committed)
        raise UserError(f"{prefix!r} is the beginning of several keys: {keys}")

    def data_path(self, manifest: Manifest) -> str:
        """Folder of the artifact's files, as the store's file system sees it."""
        return self.files.full(f"{self._base(manifest.ref)}/{manifest.attempt}")

    def local(self, manifest: Manifest) -> Path:
        """Local folder with the artifact's files; remote ones are fetched once."""
        path = f"{self._base(manifest.ref)}/{manifest.attempt}"
        return self.files.download(path, [file.path for file in manifest.files])

    def verify(self, manifest: Manifest, suffix: str = "") -> list[str]:
        """Re-hash every file (with this suffix); one line a missing or altered one."""
        manifest = manifest.only(suffix)
        path = f"{self._base(manifest.ref)}/{manifest.attempt}"
        present = set(self.files.walk(path))
        missing = [file.path for file in manifest.files if file.path not in present]
        if missing:
            return [f"{self.files.full(path)}/{name}: missing" for name in missing]
        return problems_of(self.local(manifest), manifest.files)

    def intact(self, manifest: Manifest, suffix: str = "") -> Path:
        """`local`, after `verify`, of the files with this suffix.

        Raises UserError naming a damaged file and the mend.
        """
        if problems := self.verify(manifest, suffix):
            raise UserError(
                f"artifact {manifest.label} ({manifest.ref.key}) is damaged: {problems[0]}. "
                f"Remove it with `rlt artifacts remove {manifest.ref.key}` and run again."
            )
        return self.local(manifest.only(suffix))

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
        base = self._base(manifest.ref)
        self.files.upload(f"{base}/{manifest.attempt}")
        data = manifest.model_dump_json(indent=1).encode()
        if not self.files.create(f"{base}/manifest.json", data):
            self.files.remove(f"{base}/{manifest.attempt}")
        standing = self.manifest(manifest.ref.kind, manifest.ref.key)
        assert standing is not None
        for group in self.files.names(f"work/{manifest.ref.key}"):
            if group != "lease.json":
                self.files.remove(f"work/{manifest.ref.key}/{group}")
        return standing

    def abandon(self, attempt: Attempt) -> None:
        """Delete an attempt that will not be committed."""
        self.files.remove(f"{self._base(attempt.ref)}/{attempt.id}")
        self.files.prune(self._base(attempt.ref))

    def remove(self, ref: Ref) -> None:
        """Delete an artifact, its manifest first, and its workspace."""
        self.files.remove(f"{self._base(ref)}/manifest.json")
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
        names = [path for path in self.files.walk("refs") if path.endswith(".json")]
        found = {name[:-5]: self.ref(name[:-5]) for name in names}
        return {name: ref for name, ref in found.items() if ref}

    # ------------------------------------------------------------ garbage
    def working(self) -> dict[str, dict[str, object]]:
        """Keys that somebody works on right now, with their leases."""
        leases = {key: Lease.read(self.files, key) for key in self.files.names("work")}
        return {key: lease for key, lease in leases.items() if lease}

    def orphans(self) -> list[Orphan]:
        """Attempts that no manifest names and workspaces of committed keys, minding leases."""
        working = self.working()
        found = []
        committed = set()
        for kind in self.files.names("artifacts"):
            for key in self.files.names(f"artifacts/{kind}"):
                manifest = self.manifest(kind, key)
                if manifest:
                    committed.add(key)
                keep = {"manifest.json", manifest.attempt if manifest else ""}
                base = f"artifacts/{kind}/{key}"
                attempts = [name for name in self.files.names(base) if name not in keep]
                found += [f"{base}/{name}" for name in attempts if key not in working]
        found += [
            f"work/{key}"
            for key in self.files.names("work")
            if key in committed and key not in working
        ]
        return [Orphan(path, self._size(path)) for path in found]

    def _size(self, path: str) -> int:
        return int(self.files.fs.du(self.files.full(path)))

    def gc(self) -> list[Orphan]:
        """Delete the orphans; returns what was deleted. Unfinished work is kept."""
        orphans = self.orphans()
        for orphan in orphans:
            self.files.remove(orphan.path)
        return orphans
