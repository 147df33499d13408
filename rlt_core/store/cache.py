"""Local copies of files that never change, bounded in size, for all remote stores of a user.

{home}/{store}/files/...      the copies
{home}/{store}/staging/...    files that are not uploaded yet: never evicted
{home}/in-use/{id}            the folders that one process uses; the process holds a lock on it
{home}/making/{number}        locked while a copy with this number is fetched
{home}/lock                   locked while files are evicted or moved, or a process enters `in-use`

Whole files are evicted, least recently used first, and never one in a folder that a running process
has asked for; these may exceed the bound.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rlt_core.errors import UserError

DEFAULT_GB = 50.0
LOCKS = 256
"""Numbers of copies: two that share one are fetched one after the other."""


def bound_bytes() -> int:
    """Return the largest size of the cache, from RLT_CACHE_GB. Raises UserError."""
    given = os.environ.get("RLT_CACHE_GB", str(DEFAULT_GB))
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < float("inf"):
        raise UserError(f"RLT_CACHE_GB={given}: give a number of gigabytes, 0 or more")
    return int(gigabytes * 1e9)


def default_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "rlt"


@dataclass(frozen=True)
class Usage:
    """Files and bytes in the cache."""

    files: int
    bytes: int


class _InUse:
    """The folders that this process uses: lines of a file that it keeps locked."""

    def __init__(self, home: Path) -> None:
        self.folders: set[str] = set()
        (home / "in-use").mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = (home / "in-use" / uuid.uuid4().hex).open("a")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def add(self, folder: str) -> None:
        self._file.write(f"{folder}\n")
        self._file.flush()
        self.folders.add(folder)


_in_use: dict[tuple[int, Path], _InUse] = {}
"""By process id and home: what a forked child uses is its own."""
_in_use_guard = threading.Lock()


class Cache:
    """The bounded cache below one home folder."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = home or default_home()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def use(self, folder: Path) -> None:
        """Keep the files of a folder, created if missing, until this process ends."""
        with _in_use_guard:
            mine = _in_use.get((os.getpid(), self.home))
            if mine and str(folder) in mine.folders:
                return
            with self._locked():
                mine = mine or _InUse(self.home)
                _in_use[os.getpid(), self.home] = mine
                mine.add(str(folder))
                folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def making(self, copy: Path) -> Iterator[None]:
        """Lock this copy: no other process on this machine fetches it meanwhile."""
        number = int(hashlib.sha256(str(copy).encode()).hexdigest(), 16) % LOCKS
        locks = self.home / "making"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / str(number)).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def adopt(self, staged: Path, folder: Path) -> None:
        """Turn a staged folder into a copy; does nothing if there is none."""
        with self._locked():
            folder.parent.mkdir(parents=True, exist_ok=True)
            if staged.exists() and not folder.exists():
                os.replace(staged, folder)
            shutil.rmtree(staged, ignore_errors=True)

    def usage(self) -> Usage:
        found = list(self._files())
        return Usage(len(found), sum(size for _, size, _ in found))

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(last use, bytes, path) of every cached file."""
        for files in self.home.glob("*/files"):
            for folder, _, names in os.walk(files):
                for name in names:
                    path = Path(folder, name)
                    with contextlib.suppress(FileNotFoundError):
                        status = path.stat()
                        yield status.st_mtime, status.st_size, path

    def _used(self) -> set[str]:
        """Return folders that a running process uses; forget processes that have ended."""
        found: set[str] = set()
        for path in (self.home / "in-use").glob("*"):
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.update(file.read().splitlines())
                else:
                    path.unlink()
        return found

    def trim(self, bound: int | None = None) -> Usage:
        """Evict until at most `bound` bytes (by default RLT_CACHE_GB) are left, if possible.

        Returns what was evicted.
        """
        bound = bound_bytes() if bound is None else bound
        with self._locked():
            found = sorted(self._files())
            excess = sum(size for _, size, _ in found) - bound
            if excess <= 0:
                return Usage(0, 0)
            used = self._used()
            evicted = freed = 0
            for _, size, path in found:
                if freed >= excess:
                    break
                if any(str(parent) in used for parent in path.parents):
                    continue
                path.unlink(missing_ok=True)
                self._prune(path.parent)
                evicted, freed = evicted + 1, freed + size
            return Usage(evicted, freed)

    def _prune(self, folder: Path) -> None:
        """Remove a folder and those above it, as far as they are empty."""
        while folder.name != "files" or folder.parent.parent != self.home:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent
