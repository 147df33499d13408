"""The GPUs of this machine: each belongs to one node at a time, across all processes.

A node is planned for the whole memory of its GPUs. The process that computes it holds a lock on
each until it ends, so that runs of one worker, of several, and of `rlt run` share a machine.
"""

import fcntl
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from rlt_core.errors import UserError
from rlt_core.private import home, private_folder
from rlt_core.progress import Progress

VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_S = 0.5
SHARED_WAIT_S = 600.0
"""Seconds one of several machines waits for its GPUs while the others hold theirs."""
_GPU = re.compile(r"^GPU (\d+): .*?(?:\(UUID: (\S+)\))?$", re.MULTILINE)
_HELD: list[IO[str]] = []
"""The locks of this process; they end with it."""


def here() -> dict[str, str]:
    """Return the GPUs that this process may use: name in CUDA_VISIBLE_DEVICES -> UUID. Asks the
    driver, since torch takes seconds to import."""
    visible = os.environ.get(VISIBLE)
    if visible == "" or not shutil.which("nvidia-smi"):
        return {}
    asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    known = dict(_GPU.findall(asked.stdout)) if asked.returncode == 0 else {}
    names = visible.split(",") if visible and known else known
    return {name: known.get(name) or name for name in names}


def hold(count: int, progress: Progress, patience_s: float | None = None) -> None:
    """Take `count` GPUs (all if there are fewer) until this process ends and hide the others.
    Waits until enough are free.

    Raises Stopped on request, UserError after `patience_s`.
    """
    if not (mine := here()):
        return
    count = min(count, len(mine))
    give_up = time.monotonic() + patience_s if patience_s is not None else None

    def wait() -> None:
        if give_up is not None and time.monotonic() > give_up:
            raise UserError(
                f"the GPUs of this machine were not free within {patience_s:.0f} s, while other "
                "machines wait with theirs; let its worker take one run at a time (--limit 1)"
            )
        progress.report(0, 0, {})
        progress.check()
        time.sleep(POLL_S)

    while not (
        turn := _lock("turn")
    ):  # one waits at a time: else many small nodes would keep out a large one
        wait()
    with turn:
        while len(taken := _free(mine, count)) < count:
            for lock in taken.values():
                lock.close()
            wait()
    _HELD.extend(taken.values())
    if VISIBLE not in os.environ:
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as the driver counts
    os.environ[VISIBLE] = ",".join(taken)


def _free(mine: dict[str, str], count: int) -> dict[str, IO[str]]:
    """Lock up to `count` GPUs that no process holds."""
    taken: dict[str, IO[str]] = {}
    for name, identity in mine.items():
        if len(taken) < count and (lock := _lock(identity)):
            taken[name] = lock
    return taken


def _lock(name: str) -> IO[str] | None:
    """Take a lock among this user's processes on this machine; None if another has it."""
    for folder in _lock_folders():
        file = (folder / name.replace("/", "-")).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError as error:
            file.close()
            if isinstance(error, BlockingIOError):
                return None
    raise UserError("the file system of RLT_HOME has no file locks; set it to a local folder")


def _lock_folders() -> Iterator[Path]:
    """Yield private folders of this machine: in the home, which machines may share, and, if the
    home cannot be written or locked, in the temporary folder."""
    with suppress(OSError, RuntimeError):  # RuntimeError: there is no home at all
        yield private_folder(private_folder(home()) / f"gpus-{socket.gethostname()}")
    yield private_folder(Path(tempfile.gettempdir()) / f"rlt-{os.getuid()}")
