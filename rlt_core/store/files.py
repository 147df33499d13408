"""Files below one root: `Files` in a local folder, `S3Files` (s3_files.py) on S3.

Paths are relative to the root, with `/`, and none leads out of it: what is no such path is refused,
and no link below the root is followed. Every write is atomic: it creates a file that must not exist
yet, replaces one, or swaps one whose content is as expected. Other processes may remove the folder
of a file meanwhile; it is then made again.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from rlt_core.environment import DiskFull, disk_full, free_bytes, is_full
from rlt_core.errors import UserError
from rlt_core.names import is_relative

TOPS = ("artifacts", "refs", "work")
"""Folders of a store."""
TRIES = 100
"""Tries of a change while other processes remove the folder that it is made in."""
VANISHED = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)
"""What a change meets in such a folder."""
MISPLACED = (
    errno.EACCES, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENXIO, errno.EINVAL,
)  # fmt: skip
"""What a change meets where a path has another user's folder, a pipe, …: others may succeed."""
DOCUMENT_BYTES = 16 << 20
"""Size of the largest file that is read at once: manifests (of 100,000 files), refs, leases, …"""
TOO_LARGE = f"it has more than {DOCUMENT_BYTES >> 20} MiB"
DEEPEST = 32
"""Folders within each other that a listing enters."""
TEMPORARY = re.compile(r"\.(?:.*\.)?[0-9a-f]{32}")
"""Names of files that are being written."""
LEFT_S = 3600.0
"""A temporary file that was not written to for so long was left by a crash."""
LINKED = (
    "is a link, a special file or a folder that cannot be listed; a store holds files and folders, "
    "and no link is followed"
)

log = logging.getLogger(__name__)

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
    linked: bool = False
    """A symbolic link, special file or folder that cannot be listed: not read, not followed."""

    @property
    def hidden(self) -> bool:
        """Whether a part of its path begins with a dot: a file that is being written."""
        return "/." in f"/{self.path}"


class Damaged(UserError):
    """A file in the store is missing, of another size than was committed, or cannot be read."""


def reason(error: ValueError) -> str:
    """Return what is wrong with a document, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))


def sha256_of(path: Path) -> str:
    """Hex sha256 of a local file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree(folder: Path) -> dict[str, int]:
    """Return the bytes of every file below a local folder, by its relative path, sorted.

    Raises Damaged for a link or special file: what it names is not in the folder.
    """
    entries = listed_below(folder, deep=True)
    for each in entries:
        if each.linked:
            raise Damaged(f"{folder / each.path} {LINKED}")
    return {each.path: each.bytes for each in sorted(entries) if each.bytes is not None}


def listed_below(folder: Path, deep: bool, parent: str = "") -> list[Entry]:
    """Return files and folders directly below a local folder, or with `deep` all below it; nothing
    if it does not exist. Entries that disappear meanwhile are left out, links are not followed."""
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for each in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):
                status, path = each.stat(follow_symlinks=False), f"{parent}{each.name}"
                is_file, is_folder = stat.S_ISREG(status.st_mode), stat.S_ISDIR(status.st_mode)
                size = status.st_size if is_file else None
                found.append(Entry(path, size, status.st_mtime_ns, not is_file and not is_folder))
                if deep and is_folder:
                    try:
                        if parent.count("/") >= DEEPEST:
                            raise OSError(errno.ENAMETOOLONG, "too deep")
                        found += listed_below(Path(each.path), deep, f"{path}/")
                    except OSError:
                        found[-1] = found[-1]._replace(linked=True)
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
        """Return the path as the file system sees it. Raises Damaged if it leads out of the root,
        or might do so on another system."""
        if path and not is_relative(path):
            raise Damaged(f"store {self.url}: {path!r} is no path inside a store")
        return f"{self.root}/{path}"

    def local(self, path: str) -> Path:
        """Return where this machine writes a file of a folder that is not uploaded yet.

        Raises Damaged if it, or a folder above it in the store, is a link.
        """
        self.full(path)
        place = Path(self.root)
        for part in filter(None, path.split("/")):
            place = place / part
            if place.is_symlink():
                raise Damaged(f"{place} {LINKED}")
        return place

    def arrow(self) -> Any:
        """Return pyarrow's file system for the root."""
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem()

    def require_writable(self) -> None:
        """Raises UserError if the store cannot be written, or not safely by several processes."""
        self.write(".writable", b"")
        self.remove(".writable")

    def patiently(self, call: Callable[[], Result]) -> Result:
        """Return the result of a call at the end of long work; wait for a server that is away."""
        return call()

    # ------------------------------------------------------------ single files
    def read(self, path: str) -> bytes | None:
        """The bytes, or None if there is no such file. Raises Damaged if they cannot be read."""
        try:
            with open(self.local(path), "rb", opener=_open_file) as file:
                data = file.read(DOCUMENT_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Damaged(f"{self.full(path)} cannot be read: {error.strerror}") from None
        if len(data) > DOCUMENT_BYTES:
            raise Damaged(f"{self.full(path)} cannot be read: {TOO_LARGE}")
        return data

    def load(
        self, paths: Iterable[str], parse: Callable[[str, bytes], Result]
    ) -> tuple[dict[str, Result], dict[str, str]]:
        """Return what `parse(path, bytes)` makes of those files that exist, and for each that
        cannot be read or parsed (Damaged, ValueError) a line that says why."""
        paths, problems = list(paths), {}

        def load(path: str) -> Result | None:
            try:
                data = self.read(path)
                return None if data is None else parse(path, data)
            except Damaged as error:
                problems[path] = str(error)
            except ValueError as error:
                problems[path] = f"{self.full(path)} is damaged: {reason(error)}"
            return None

        found = zip(paths, parallel(load, paths, self.threads), strict=True)
        return {path: one for path, one in found if one is not None}, dict(sorted(problems.items()))

    def create(self, path: str, data: bytes) -> bool:
        """Write a file that must not exist yet, atomically; False if another writer was first."""
        return self._place(path, data, exclusive=True)

    def write(self, path: str, data: bytes) -> None:
        """Write or replace a file atomically."""
        self._place(path, data)

    def swap(self, path: str, expected: Callable[[bytes], bool], new: bytes | None) -> bool:
        """Replace a file (None: delete it) if its content is as expected, as one atomic step.

        False if it is not, or if there is no file. Atomic among swaps, which is all that leases
        need.
        """
        if not os.path.isdir(self.root):
            return False
        lock_file = self.local(".lock")
        with self.changing(), open(lock_file, "ab", opener=_open_file) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            there = self.read(path)
            if there is None or not expected(there):
                return False
            if new is None:
                self.local(path).unlink(missing_ok=True)
            else:
                self.write(path, new)
            return True

    def put(self, source: Path, path: str) -> None:
        """Copy a local file into the store."""
        self._place(path, source)

    def fetch(self, path: str, size: int, target: Path) -> None:
        """Copy a file of this size to a local path; S3 alone: for a folder, `put` of the other
        store copies it."""
        raise NotImplementedError

    def sha256(self, path: str, size: int) -> str:
        """Hex sha256 of a file of this size in the store."""
        return sha256_of(self.local(path))

    def _place(self, path: str, content: bytes | Path, exclusive: bool = False) -> bool:
        """Write bytes, or what a file has, beside their place and put them there in one step;
        False if `exclusive` and there is a file."""
        target = self.local(path)

        def place() -> bool:
            with self._temporary(target) as temporary:
                if isinstance(content, Path):
                    shutil.copyfile(content, temporary)
                else:
                    temporary.write_bytes(content)
                _sync(temporary)
                try:
                    (os.link if exclusive else os.replace)(temporary, target)
                except FileExistsError:
                    return False
            _sync(target.parent)
            return True

        return self._change(place)

    @contextlib.contextmanager
    def _temporary(self, target: Path) -> Iterator[Path]:
        """A path beside a file that is to be written, for its content until it is complete."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{uuid.uuid4().hex}")
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _change(self, change: Callable[[], Result]) -> Result:
        """Return the result of a change, made again where its folder was removed meanwhile."""
        with self.changing():
            for tries_left in reversed(range(TRIES)):
                try:
                    return change()
                except OSError as error:
                    if error.errno not in VANISHED or not tries_left:
                        raise
        raise AssertionError("the last try returns or raises")

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Errors of the disk as DiskFull or a UserError that names the store."""
        try:
            yield
        except DiskFull:
            raise
        except RecursionError:
            raise Damaged(f"store {self.root} has folders too deep to be deleted") from None
        except OSError as error:
            if is_full(error):
                root = Path(self.root)
                raise DiskFull(disk_full(root, free_bytes(root))) from None
            kind = Damaged if error.errno in MISPLACED else UserError
            raise kind(f"store {self.root} cannot be written: {error}") from None

    # ------------------------------------------------------------ folders
    def listed(self, path: str, deep: bool = False) -> list[Entry]:
        """Return files and folders directly below a folder of the store, or with `deep` all files
        below it; nothing if it does not exist or is a link. One that cannot be listed is logged."""
        try:
            return [each for each in listed_below(self.local(path), deep) if is_relative(each.path)]
        except Damaged:
            return []
        except OSError as error:
            log.warning("%s cannot be listed: %s", self.full(path), error.strerror)
            return []

    def unsent(self, path: str, deep: bool = False) -> list[Entry]:
        """Return entries below a folder that are on this machine and not in the store yet."""
        return []

    def names(self, path: str) -> list[str]:
        """Names directly below a folder, sorted, without hidden ones and links; none if there is no
        folder."""
        found = (*self.listed(path), *self.unsent(path))
        return sorted({each.path for each in found if not each.hidden and not each.linked})

    def sizes(self, path: str) -> dict[str, int]:
        """Bytes of every file below a folder, by its path relative to the folder, sorted."""
        found = self.listed(path, deep=True)
        return {each.path: each.bytes for each in sorted(found) if each.bytes is not None}

    def walk(self, path: str) -> list[str]:
        """Every file below a folder, relative to it, sorted."""
        return list(self.sizes(path))

    def usage(self, path: str, depth: int) -> dict[str, int]:
        """Bytes of each file or folder that is so deep below a folder, by its path relative to the
        folder, sorted, hidden ones left out. Empty folders, links and `unsent` are among them."""
        found: Counter[str] = Counter()
        for each in (*self.listed(path, deep=True), *self.unsent(path, deep=True)):
            parts = each.path.split("/")[:depth]
            if len(parts) == depth and not any(part.startswith(".") for part in parts):
                found["/".join(parts)] += each.bytes or 0
        return dict(sorted(found.items()))

    def leftovers(self) -> dict[str, int]:
        """Return the temporary files that a crash has left, with their bytes."""
        before, found = (time.time() - LEFT_S) * 1e9, {}
        for top in ("", *(TOPS if self.is_local else ())):
            for each in self.listed(top, deep=bool(top)):
                name = each.path.rpartition("/")[2]
                old = each.bytes is not None and each.changed_ns < before
                if old and TEMPORARY.fullmatch(name):
                    found[f"{top}/{each.path}".removeprefix("/")] = each.bytes or 0
        return found

    def remove(self, path: str) -> None:
        """Delete a file, or a folder with all that is in it; nothing there is fine. Of a link, the
        link itself goes."""
        parent, _, name = path.rpartition("/")
        self.full(path)
        target = self.local(parent) / name

        def remove() -> None:
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target, onerror=_unless_gone)
            else:
                with contextlib.suppress(NotADirectoryError):
                    target.unlink(missing_ok=True)

        self._change(remove)

    def prune(self, path: str) -> None:
        """Remove a local folder if it is empty."""
        with contextlib.suppress(OSError, Damaged):
            os.rmdir(self.local(path))

    def new_folder(self, path: str) -> Path:
        """An empty local folder to fill and then `upload`."""
        folder = self.local(path)
        self._change(lambda: folder.mkdir(parents=True))
        return folder

    def upload(self, path: str) -> None:
        """Make all files in `new_folder(path)` durable."""
        with self.changing():
            folder = self.local(path)
            for each in listed_below(folder, deep=True):
                if not each.linked:
                    _sync(folder / each.path)
            if folder.is_dir():
                _sync(folder)

    def download(self, path: str, sizes: Mapping[str, int]) -> Path:
        """Return a local folder with these files (name -> bytes) of a committed folder.

        Raises Damaged if a file is missing or of another size, or if anything there is a link.
        """
        folder = self.local(path)
        there = tree(folder)
        for name, size in sizes.items():
            if name not in there:
                raise Damaged(f"{folder / name}: missing")
            if there[name] != size:
                raise Damaged(f"{folder / name}: {there[name]} bytes, {size} when committed")
        return folder


def _open_file(path: str, flags: int) -> int:
    """Open a regular file; a pipe, device or link is refused instead of waited for or followed."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file")
    return descriptor


def _sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unless_gone(_: object, __: object, error: tuple[type, BaseException, object]) -> None:
    """Raise an error of shutil.rmtree, except that another process was quicker."""
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]
