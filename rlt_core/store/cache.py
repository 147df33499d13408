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
from pathlib import Path
from typing import IO, NamedTuple

from rlt_core.errors import UserError

DEFAULT_GB = "50"
LOCKS = 256
"""Numbers of copies: two that share one are fetched one after the other."""


def bound_bytes() -> int:
    """Return the largest size of the cache, from RLT_CACHE_GB. Raises UserError."""
    given = os.environ.get("RLT_CACHE_GB", DEFAULT_GB)
    with contextlib.suppress(ValueError, OverflowError):
        if (size := int(float(given) * 1e9)) >= 0:
            return size
    raise UserError(f"RLT_CACHE_GB={given}: give a number of gigabytes, 0 or more")


class Usage(NamedTuple):
    """Files and bytes in the cache."""

    files: int
    bytes: int


_in_use: dict[tuple[int, Path], tuple[IO[str], set[str]]] = {}
"""Process id and home -> the locked file with the folders that the process uses, and the folders.
What a forked child uses is its own."""
_in_use_guard = threading.Lock()


class Cache:
    """The bounded cache below one home folder."""

    def __init__(self, home: Path | None = None) -> None:
        caches = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        self.home = home or caches / "rlt"

    @contextlib.contextmanager
    def _locked(self, name: str = "lock") -> Iterator[None]:
        file = self.home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def use(self, folder: Path) -> None:
        """Keep the files of a folder, created if missing, until this process ends."""
        own = os.getpid(), self.home
        with _in_use_guard:
            if own in _in_use and str(folder) in _in_use[own][1]:
                return
            with self._locked():
                if own not in _in_use:
                    (self.home / "in-use").mkdir(exist_ok=True)
                    _in_use[own] = (self.home / "in-use" / uuid.uuid4().hex).open("a"), set()
                    fcntl.flock(_in_use[own][0], fcntl.LOCK_EX)
                print(folder, file=_in_use[own][0], flush=True)
                _in_use[own][1].add(str(folder))
                folder.mkdir(parents=True, exist_ok=True)

    def making(self, copy: Path) -> contextlib.AbstractContextManager[None]:
        """Lock this copy: no other process on this machine fetches it meanwhile."""
        number = int(hashlib.sha256(str(copy).encode()).hexdigest(), 16) % LOCKS
        return self._locked(f"making/{number}")

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
        for path in self.home.glob("*/files/**/*"):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    yield path.stat().st_mtime, path.stat().st_size, path

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
        evicted = freed = 0
        with self._locked():
            found = sorted(self._files())
            excess = sum(size for _, size, _ in found) - bound
            used = self._used() if excess > 0 else set()
            for _, size, path in found:
                if freed >= excess:
                    break
                if not used.intersection(map(str, path.parents)):
                    path.unlink(missing_ok=True)
                    evicted, freed = evicted + 1, freed + size
        return Usage(evicted, freed)
