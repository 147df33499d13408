"""Processes that outlive the command that starts them: started once, found, ended for good."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

MARK = "RLT_UP"
"""Environment variable by which all that was started, and all that it started, is known."""


class Processes:
    """The background processes of one home folder (`{home}/processes.json`, `{home}/*.log`)."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._file = home / "processes.json"

    def _read(self) -> dict[str, tuple[int, float]]:
        """Name -> (pid, start time)."""
        if not self._file.exists():
            return {}
        return {name: (pid, at) for name, (pid, at) in json.loads(self._file.read_text()).items()}

    def _write(self, entries: Mapping[str, tuple[int, float]]) -> None:
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(entries))
        os.replace(temporary, self._file)

    def log(self, name: str) -> Path:
        """Where a process writes."""
        return self.home / f"{name}.log"

    def alive(self, name: str) -> bool:
        """Whether this process was started and still runs."""
        return self._find(name) is not None

    def _find(self, name: str) -> psutil.Process | None:
        pid, started = self._read().get(name, (0, 0.0))
        try:
            process = psutil.Process(pid) if pid else None
            if process and abs(process.create_time() - started) < 1 and _runs(process):
                return process
        except psutil.NoSuchProcess:
            pass
        return None

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it in a session of its own; Ctrl-C in the terminal does not reach it."""
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                env={**environment, MARK: str(self.home)},
                start_new_session=True,
            )
        self._write(self._read() | {name: (child.pid, psutil.Process(child.pid).create_time())})

    def stop(self, names: Iterable[str], timeout_s: float) -> None:
        """Ask these to end, all at once, and kill what has not ended in time."""
        found = [process for name in names if (process := self._find(name))]
        _end(found, timeout_s)
        self._write({n: entry for n, entry in self._read().items() if n not in set(names)})

    def stop_others(self, timeout_s: float) -> None:
        """End what was started from here beside the named processes and their own helpers: runs,
        what they compute, what a killed worker left."""
        kept = set()
        for process in filter(None, map(self._find, self._read())):
            kept |= {process.pid, *(child.pid for child in process.children(recursive=True))}
        _end([process for process in self.marked() if process.pid not in kept], timeout_s)

    def marked(self) -> list[psutil.Process]:
        """All processes that were started from this home, directly or not."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == str(self.home) and process.pid != os.getpid():
                    found.append(process)
        return [process for process in found if _runs(process)]


def free_port() -> int:
    """A port of the loopback interface on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
