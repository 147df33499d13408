"""Files below one root: `Files` in a local folder, `S3Files` (s3_files.py) on S3.

Paths are relative to the root, with `/`. Every write is atomic: it creates a file that must not
exist yet, replaces one, or swaps one whose content is as expected.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rlt_core.environment import DiskFull, disk_full, free_bytes, is_full
from rlt_core.errors import UserError

CHUNK_BYTES = 1 << 20

Advance = Callable[[int], None]
"""Callback for progress, with the bytes that have moved since its last call; called from several
threads."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Entry(NamedTuple):
    """A file or folder in a listing."""

    path: str
    """Relative to the folder that was listed."""
    bytes: int | None
    """None for a folder."""
    changed_ns: int
    """Nanoseconds since 1970."""

    @property
    def hidden(self) -> bool:
        """Whether a part of its path begins with a dot: a file that is being written."""
        return "/." in f"/{self.path}"


class Damaged(UserError):
    """A file in the store is missing or of another size than was committed."""


def silent(_: int) -> None:
    """Ignore progress."""


def sha256_of(path: Path) -> str:
    """Hex sha256 of a local file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def local_tree(folder: Path) -> list[Path]:
    """Every file below a local folder, sorted by its relative path."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def listed_below(folder: Path, deep: bool, parent: str = "") -> list[Entry]:
    """Return files and folders directly below a local folder, or with `deep` all below it; nothing
    if it does not exist. Entries that disappear meanwhile are left out."""
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for each in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):
                status, path = each.stat(), f"{parent}{each.name}"
                size = status.st_size if stat.S_ISREG(status.st_mode) else None
                found.append(Entry(path, size, status.st_mtime_ns))
                if deep and size is None and not each.is_symlink():
                    found += listed_below(Path(each.path), deep, f"{path}/")
    return found


def parallel(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int
) -> list[Result]:
    """Return the results in order, computed in threads; the first error stops what has not
    begun."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        return list(pool.map(function, items))


class Files:
    """A root folder on a local disk."""

    is_local = True
    threads = 2
    """Files that are read or hashed at the same time."""
    manifest_copies: Path | None = None
    """Local folder for copies of a remote store's manifests."""

    def __init__(self, root: str) -> None:
        self.fs: fsspec.AbstractFileSystem = LocalFileSystem(auto_mkdir=True)
        self.root = str(Path(root).expanduser().absolute())
        self.url = self.root

    def full(self, path: str) -> str:
        """The path as the file system sees it."""
        return f"{self.root}/{path}"

    def local(self, path: str) -> Path:
        """Where this machine writes a file of a folder that is not uploaded yet."""
        return Path(self.full(path))

    def arrow(self) -> Any:
        """Return pyarrow's file system for the root."""
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem()

    def patiently(self, call: Callable[[], Result]) -> Result:
        """Return the result of a call at the end of long work; wait for a server that is away."""
        return call()

    # ------------------------------------------------------------ single files
    def read(self, path: str) -> bytes | None:
        """The bytes, or None if there is no such file."""
        try:
            return Path(self.full(path)).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        """The bytes of those files that exist."""
        paths = list(paths)
        found = zip(paths, parallel(self.read, paths, self.threads), strict=True)
        return {path: data for path, data in found if data is not None}

    def create(self, path: str, data: bytes) -> bool:
        """Write a file that must not exist yet, atomically; False if another writer was first."""
        temporary = self._temporary(path, data)
        try:
            os.link(temporary, self.full(path))
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        self._sync_folder(path)
        return True

    def write(self, path: str, data: bytes) -> None:
        """Write or replace a file atomically."""
        os.replace(self._temporary(path, data), self.full(path))
        self._sync_folder(path)

    def swap(self, path: str, expected: Callable[[bytes], bool], new: bytes | None) -> bool:
        """Replace a file (None: delete it) if its content is as expected, as one atomic step.

        False if it is not, or if there is no file. Atomic among swaps, which is all that leases
        need.
        """
        if not os.path.isdir(self.root):
            return False
        with open(self.full(".lock"), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            there = self.read(path)
            if there is None or not expected(there):
                return False
            if new is None:
                os.unlink(self.full(path))
            else:
                self.write(path, new)
            return True

    def put(self, source: Path, path: str, advance: Advance = silent) -> None:
        """Copy a local file into the store."""
        target = Path(self.full(path))
        with source.open("rb") as file, self._writing():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
            with temporary.open("wb") as copy:
                while chunk := file.read(CHUNK_BYTES):
                    copy.write(chunk)
                    advance(len(chunk))
                copy.flush()
                os.fsync(copy.fileno())
            os.replace(temporary, target)

    def fetch(self, path: str, size: int, target: Path, advance: Advance = silent) -> None:
        """Copy a file of this size to a local path; S3 alone: for a folder, `put` of the other
        store copies it."""
        raise NotImplementedError

    def sha256(self, path: str, size: int) -> str:
        """Hex sha256 of a file of this size in the store."""
        return sha256_of(Path(self.full(path)))

    def _temporary(self, path: str, data: bytes) -> str:
        target = Path(self.full(path))
        with self._writing():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        return str(temporary)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if is_full(error):
                root = Path(self.root)
                raise DiskFull(disk_full(root, free_bytes(root))) from None
            raise UserError(f"store {self.root} cannot be written: {error}") from None

    def _sync_folder(self, path: str) -> None:
        descriptor = os.open(Path(self.full(path)).parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    # ------------------------------------------------------------ folders
    def listed(self, path: str, deep: bool = False) -> list[Entry]:
        """Return files and folders directly below a folder of the store, or with `deep` all files
        below it; nothing if it does not exist."""
        return listed_below(Path(self.full(path)), deep)

    def unsent(self, path: str, deep: bool = False) -> list[Entry]:
        """Return entries below a folder that are on this machine and not in the store yet."""
        return []

    def names(self, path: str) -> list[str]:
        """Names directly below a folder, sorted, hidden ones left out; none if there is none."""
        found = {each.path for each in (*self.listed(path), *self.unsent(path)) if not each.hidden}
        return sorted(found)

    def expand(self, pattern: str) -> list[str]:
        """Paths that fit a pattern such as `work/*/lease.json`, sorted.

        Folders of one level are listed at the same time. What follows the last `*` is not looked
        for: `read_many` drops what is not there.
        """
        found = [""]
        for part in pattern.split("/"):
            if part == "*":
                below = parallel(self.names, found, self.threads)
                found = [
                    f"{parent}/{name}"
                    for parent, names in zip(found, below, strict=True)
                    for name in names
                ]
            else:
                found = [f"{parent}/{part}".removeprefix("/") for parent in found]
        return found

    def sizes(self, path: str) -> dict[str, int]:
        """Bytes of every file below a folder, by its path relative to the folder, sorted."""
        found = self.listed(path, deep=True)
        return {each.path: each.bytes for each in sorted(found) if each.bytes is not None}

    def walk(self, path: str) -> list[str]:
        """Every file below a folder, relative to it, sorted."""
        return list(self.sizes(path))

    def usage(self, path: str, depth: int) -> dict[str, int]:
        """Bytes of each file or folder that is so deep below a folder, by its path relative to the
        folder, sorted, hidden ones left out. Empty folders and `unsent` are among them."""
        found: Counter[str] = Counter()
        for each in (*self.listed(path, deep=True), *self.unsent(path, deep=True)):
            parts = each.path.split("/")[:depth]
            if len(parts) == depth and not any(part.startswith(".") for part in parts):
                found["/".join(parts)] += each.bytes or 0
        return dict(sorted(found.items()))

    def remove(self, path: str) -> None:
        """Delete a file or a folder with all that is in it; nothing there is fine."""
        target = Path(self.full(path))
        with self._writing():
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def prune(self, path: str) -> None:
        """Remove a local folder if it is empty."""
        with contextlib.suppress(OSError):
            os.rmdir(self.local(path))

    def new_folder(self, path: str) -> Path:
        """An empty local folder to fill and then `upload`."""
        folder = self.local(path)
        with self._writing():
            folder.mkdir(parents=True)
        return folder

    def upload(self, path: str, advance: Advance = silent) -> None:
        """Make all files in `new_folder(path)` durable."""
        for file in local_tree(self.local(path)):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def download(self, path: str, sizes: Mapping[str, int], advance: Advance = silent) -> Path:
        """Return a local folder with these files (name -> bytes) of a committed folder."""
        return Path(self.full(path))

    def drop_copies(self, path: str, names: Iterable[str]) -> None:
        """Forget local copies of remote files, which `download` then fetches again."""
