"""Background processes that outlive the command that starts them."""

import contextlib
import json
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from rlt_core.errors import UserError
from rlt_core.private import private_folder

MARK = "RLT_UP"
"""Environment variable that marks the started processes and their children."""
PRIVATE = 0o077
"""Umask of the servers: their files are this user's alone."""
READY_S = 180.0
"""Seconds in which a started process must be ready."""
CLOCK_S = 2.0
"""Seconds by which the start time of one process may differ when it is read again."""


class Processes:
    """The background processes of a home folder (`{home}/{name}.pid`, `{home}/{name}.log`)."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def log(self, name: str) -> Path:
        return self.home / f"{name}.log"

    def alive(self, name: str) -> bool:
        """Return whether this process was started and is running."""
        return self._find(name) is not None

    def _find(self, name: str) -> psutil.Process | None:
        # ValueError: the file is cut off, by a crash or a full disk.
        with contextlib.suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
            pid, started = json.loads((self.home / f"{name}.pid").read_text())
            process = psutil.Process(pid)
            # The clock that start times are derived from may be set meanwhile.
            if abs(process.create_time() - started) < CLOCK_S and _runs(process):
                return process
        return None

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], umask: int = -1
    ) -> None:
        """Start a process in a session of its own, so that Ctrl-C does not reach it.

        Its log begins empty; that of the start before is kept as `{name}.log.1`.
        """
        private_folder(self.home)
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.log(name), f"{self.log(name)}.1")
        with self.log(name).open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                env={**environment, MARK: str(self.home)},
                start_new_session=True,
                umask=umask,
            )
        started = [child.pid, psutil.Process(child.pid).create_time()]
        (self.home / f"{name}.pid").write_text(json.dumps(started))

    def wait(self, name: str, ready: Callable[[], bool]) -> None:
        """Return once a started process is ready. Raises UserError if it exits or is too slow."""
        wait_until(ready, lambda: self.alive(name), name, self.log(name))

    def listens(self, name: str, port: int) -> bool:
        """Return whether this process or a child of it listens on a port. Another user may have
        taken a port that was free when the process started; no login may be sent there."""
        process = self._find(name)
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [process, *process.children(recursive=True)] if process else []
            return any(
                one.laddr and one.laddr.port == port and one.status == psutil.CONN_LISTEN
                for each in family
                for one in each.net_connections("tcp")
            )
        return False

    def stop(self, names: Iterable[str], timeout_s: float) -> None:
        """Terminate these processes together, and kill those that are left after the timeout."""
        names = list(names)
        _end(list(filter(None, map(self._find, names))), timeout_s)
        for name in names:
            (self.home / f"{name}.pid").unlink(missing_ok=True)

    def stop_others(self, timeout_s: float) -> None:
        """Terminate marked processes other than the named ones and their children: flow runs, their
        computations, and leftovers of a killed worker."""
        kept = set()
        named = (file.stem for file in self.home.glob("*.pid"))
        for process in filter(None, map(self._find, named)):
            kept |= {process.pid, *(child.pid for child in process.children(recursive=True))}
        _end([process for process in self.marked() if process.pid not in kept], timeout_s)

    def marked(self) -> list[psutil.Process]:
        """Return all processes that were started from this home, directly or indirectly."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == str(self.home) and process.pid != os.getpid():
                    found.append(process)
        return [process for process in found if _runs(process)]


def wait_until(
    ready: Callable[[], bool], alive: Callable[[], bool], name: str, log: Path | str
) -> None:
    """Return once a process is ready. Raises UserError if it exits or is too slow."""
    deadline = time.monotonic() + READY_S
    while not ready():
        if not alive():
            raise UserError(f"the process {name} exited while starting; see {log}")
        if time.monotonic() > deadline:
            raise UserError(f"the process {name} is not ready after {READY_S:.0f} s; see {log}")
        time.sleep(0.2)


def free_port() -> int:
    """Return a free port of the loopback interface, below those of outgoing connections."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _end(processes: list[psutil.Process], timeout_s: float) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(processes, timeout=timeout_s)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5)
