"""The environment of a run: proxies, full disks, and its errors as one line."""

import errno
import netrc
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from rlt_core.errors import UserError
from rlt_core.printable import printable
from rlt_core.secrets import masked

LOOPBACK = ("localhost", "127.0.0.1", "::1")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, an exhausted quota, a file larger than the limit (`ulimit -f`)."""
SAYS_FULL = re.compile(
    r"no space left on device|disk quota exceeded|file too large|database or disk is full"
    r"|PytorchStreamWriter failed|inline_container.*(file write failed|unexpected pos)",
    re.IGNORECASE,
)
"""Messages of safetensors, SQLite and torch, whose errors have no error number."""


SAYS_NO_MEMORY = re.compile(
    r"out ?of ?memory|can(no|')t allocate memory|_ALLOC_FAILED|bad_alloc|unable to allocate"
    r"|no available memory for the cache blocks",
    re.IGNORECASE,
)
"""Names and messages of errors of torch, CUDA, DuckDB and vLLM, which have no type in common."""


class DiskFull(OSError):
    """A disk is full; the message names it and says how much is missing."""


def bypass_proxies_on_loopback() -> None:
    """Let this process and its children connect to loopback without a proxy.

    Libraries differ in which spelling of the variable they read.
    """
    lower, upper = os.environ.get("no_proxy"), os.environ.get("NO_PROXY")
    for name, value in {"no_proxy": lower or upper, "NO_PROXY": upper or lower}.items():
        hosts = [host.strip() for host in (value or "").split(",") if host.strip()]
        if "*" not in hosts:
            os.environ[name] = ",".join(dict.fromkeys([*hosts, *LOOPBACK]))


def require_tracker(name: str) -> None:
    """Raise UserError if a tracker (`resources.tracking`) is not installed or has no login."""
    if name == "none":
        return
    if find_spec(name) is None:
        raise UserError(
            f"resources.tracking={name}: {name} is not installed; pip install "
            "'rlt-pipeline[tracking]', or set tracking=none"
        )
    if name == "wandb" and not _has_wandb_login():
        raise UserError(
            "resources.tracking=wandb: no login; run `wandb login`, set WANDB_API_KEY, or "
            "WANDB_MODE=offline to keep the run on this machine"
        )


def _has_wandb_login() -> bool:
    """Whether wandb would start a run without asking: by its mode, key or ~/.netrc."""
    if os.environ.get("WANDB_MODE", "online") != "online" or os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return False


# ---------------------------------------------------------------- full disks
@contextmanager
def disk_space(folder: Path, needed: int = 0) -> Iterator[None]:
    """Raise DiskFull if writing to a folder fails for lack of space; `needed`: bytes, if known."""
    free = free_bytes(folder)
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise DiskFull(disk_full(folder, free, needed)) from error


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder that becomes `folder` at the end; after an error nothing is left of it."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        with disk_space(folder):
            part.mkdir(parents=True)
            yield part
            os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def is_full(error: BaseException) -> bool:
    """Return whether an error, or its cause, says that a disk is full."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return bool(SAYS_FULL.search(str(error))) or (
        error.__cause__ is not None and is_full(error.__cause__)
    )


def free_bytes(folder: Path) -> int:
    """Return the free bytes of a folder's disk; the folder need not exist yet."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.is_dir())
    return shutil.disk_usage(there).free


def disk_full(folder: Path, free: int, needed: int = 0) -> str:
    """Return one line: which disk is full, and how much is missing."""
    if needed > free:
        missing = f"writing {mib(needed)}, {mib(needed - free)} are missing"
    elif needed:
        missing = f"writing {mib(needed)} is limited by a quota or `ulimit -f`"
    else:
        missing = "more is written"
    return (
        f"disk full: {folder.absolute()} is on a disk with {mib(free)} free; {missing}. "
        "Free space and run the same command again: it continues from the last checkpoint"
    )


def mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or its cause, says that a GPU or this machine is out of memory."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or bool(SAYS_NO_MEMORY.search(f"{type(error).__name__} {error}"))
        or (error.__cause__ is not None and is_out_of_memory(error.__cause__))
    )


# ---------------------------------------------------------------- errors as one line
def in_one_line(error: BaseException, folder: Path) -> str | None:
    """Return an error of the environment as one line; None for any other error.

    `folder`: where the work writes, beside the temporary folder (TMPDIR).
    """
    if isinstance(error, DiskFull):
        return str(error)
    if is_full(error):
        places = [folder, Path(tempfile.gettempdir())]
        named = getattr(error, "filename", None)
        fullest = Path(named).parent if named else min(places, key=free_bytes)
        return disk_full(fullest, free_bytes(fullest))
    return " ".join(str(error).split()) if isinstance(error, OSError) else None


@contextmanager
def exit_in_one_line(folder: Path) -> Iterator[None]:
    """Exit with one line and status 2 for a user error, 1 for an error of the environment.

    `folder`: see `in_one_line`.
    """
    try:
        yield
    except UserError as error:
        line, status = str(error), 2
    except Exception as error:
        found = _unwritable_output(error) or in_one_line(error, folder)
        if found is None:
            raise
        line, status = found, 1
    else:
        return
    print(printable(masked(f"rlt: {line}")), file=sys.stderr)
    sys.exit(status)


def _unwritable_output(error: Exception) -> str | None:
    """Return why standard output cannot be written, if that caused the error.

    It is then replaced, so that the interpreter's last flush is silent.
    """
    if (
        sys.stdout is None
        or not isinstance(error, OSError)
        or error.filename
        or error.errno is None
    ):
        return None
    try:
        os.write(1, b"\n")
    except OSError as failure:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return f"standard output cannot be written: {failure}"
    return None


def require_environment() -> None:
    """Raise UserError if the working directory was deleted, OSError if the output is closed."""
    if sys.stdout is None:
        raise OSError("standard output is closed; redirect it, e.g. `> /dev/null`")
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the working directory was deleted; change to another one") from None
