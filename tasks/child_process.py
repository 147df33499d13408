"""Child processes that compute: forked from a server with the imports done, and ended with their
parent.

A child dies with its parent: the pipe between them closes, the child is asked to stop, has
`GRACE_S` to checkpoint, and is then killed with its whole process group. The same happens when the
child receives a SIGTERM, and when the parent asks (`ChildProcesses.stop`), with a time of its own.

Importing torch, TRL and lighteval takes longer than many a node, so children are forks of a server
that has done it (tasks/fork_server.py): one of this process, or the one that `rlt worker` shares
with all its runs (`share_fork_server`), for as long as the code is the one that it imported.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from multiprocessing import util
from pathlib import Path
from typing import Any

from rlt_core.checkout import sources_changed_at
from rlt_core.environment import in_one_line
from rlt_core.errors import Stopped, UserError
from rlt_core.progress import Metrics, Progress
from rlt_core.secrets import clean_logs, masked
from tasks.fork_server import Channel, ForkServer, Silent, fork

GRACE_S = 30.0
EXIT_S = 5.0
"""Seconds a child has to exit after sending its result."""
LOG_LINES = 15
"""Lines of a dead child's log that its error shows."""
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # Else a library that asks for GPUs while the server imports it leaves none to the children:
    # https://docs.pytorch.org/docs/2.13/notes/cuda.html#environment-variables
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "DO_NOT_TRACK": "1",  # vLLM reports from every engine that it starts, unless told not to
}
"""Defaults for the environment of fork servers and children."""
SHARED_SERVER = "RLT_FORK_SERVER"
"""Environment variable that names a shared fork server: time of its sources and its socket."""

_own: ForkServer | None = None
_starting = threading.Lock()


class ChildFailed(Exception):
    """The work raised, or its process died; the message says what is known."""

    killed = False
    """Whether the process died by SIGKILL."""


# ---------------------------------------------------------------- fork servers
def share_fork_server(modules: Iterable[str]) -> None:
    """Start a fork server with `modules` imported and name it in the environment, so that the
    processes that this one starts fork their children from it."""
    server = _own_server(modules)
    os.environ[SHARED_SERVER] = f"{sources_changed_at()}:{server.address}"


def _own_server(modules: Iterable[str]) -> ForkServer:
    """Return this process's own server, which may still import; start it unless it runs."""
    global _own
    with _starting:
        if _own is None or _own.process.poll() is not None:
            _own = ForkServer("tasks.child_process:run_child", modules, _defaults())
        return _own


def _defaults() -> dict[str, str]:
    return {name: v for name, v in ENVIRONMENT.items() if name not in os.environ}


def _fork(request: dict[str, Any], preload: Iterable[str]) -> tuple[int, Channel]:
    """Fork a child from the shared server, if it has today's code, or from one of our own."""
    changed_at, _, address = os.environ.get(SHARED_SERVER, "").partition(":")
    if changed_at == str(sources_changed_at()):
        try:
            return fork(address, request)
        except Silent:
            os.environ.pop(SHARED_SERVER, None)
    try:
        return fork(_own_server(preload).address, request)
    except Silent:  # it was killed just now
        return fork(_own_server(preload).address, request)


# ---------------------------------------------------------------- in the parent
class ChildProcesses:
    """Starts children and ends them. One per process; its methods may be called from threads."""

    def __init__(self, preload: Iterable[str]) -> None:
        """`preload`: modules that a server of this process's own imports once, for all children."""
        self._preload = list(preload)
        self._stop = threading.Event()
        self._deadline = math.inf

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def stop(self, grace_s: float = GRACE_S) -> None:
        """Ask every child to checkpoint and end, and start no more; after `grace_s` they are
        killed. Called again, the earlier end counts."""
        self._deadline = min(self._deadline, time.monotonic() + grace_s)
        self._stop.set()

    def execute(
        self,
        target: str,
        argument: Any,
        *,
        log: Path,
        on_progress: Callable[[int, int, Metrics], None],
        on_line: Callable[[str], None],
    ) -> Any:
        """Call `module:function(argument, progress)` in a child and return what it returns.

        The child has this process's environment. Its standard output and error go to the file
        `log`, and line by line to `on_line`. Raises UserError and Stopped as the child did, and
        ChildFailed with the child's traceback or the end of its log.
        """
        if self.stopping:
            raise Stopped("stopped on request")
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.is_symlink() or (log.exists() and not log.is_file()):
            raise UserError(f"{log} is a link or no file; delete it")
        lines = _NewLines(log, on_line)
        request = {
            "target": target,
            "argument": argument,
            "log": str(log.absolute()),
            "environment": {**_defaults(), **os.environ},
            "path": sys.path,
            "folder": os.getcwd(),
        }
        pid, channel = _fork(request, self._preload)
        try:
            kind, value = self._follow(pid, channel, on_progress, lines)
            if kind not in ("died", "killed"):
                with contextlib.suppress(EOFError):
                    channel.receive(EXIT_S)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)  # also the processes that the child started
            channel.close()
            lines.pass_on(to_the_end=True)
        return _unpack(kind, value, log)

    def _follow(
        self,
        pid: int,
        channel: Channel,
        on_progress: Callable[[int, int, Metrics], None],
        lines: _NewLines,
    ) -> tuple[str, Any]:
        """Read messages until the child sends an outcome or dies; return its kind and value."""
        asked = False
        while True:
            lines.pass_on()
            try:
                message = channel.receive(0.2) or {}
            except EOFError:  # its server died before it
                return "died", None
            if "exit" in message:
                return "died", message["exit"]
            if "outcome" in message:
                kind, value = message["outcome"]
                return kind, value
            if "progress" in message:
                on_progress(*message["progress"])
            if self.stopping and not asked:
                asked = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            if time.monotonic() > self._deadline:
                return "killed", "killed; it continues from its last checkpoint"


class _NewLines:
    """Passes on what is appended to a log file from now on, in whole lines."""

    def __init__(self, log: Path, on_line: Callable[[str], None]) -> None:
        self._log, self._on_line = log, on_line
        self._offset = log.stat().st_size if log.exists() else 0

    def pass_on(self, to_the_end: bool = False) -> None:
        """Pass on every new line; an unfinished one waits for its end."""
        if not self._log.exists():
            return
        with self._log.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        if not to_the_end:
            new = new[: new.rfind(b"\n") + 1]
        self._offset += len(new)
        for line in new.decode(errors="replace").split("\n"):
            # A progress bar rewrites its line: only its last text is passed on.
            if shown := line.rpartition("\r")[2].rstrip():
                self._on_line(shown)


def _unpack(kind: str, value: Any, log: Path) -> Any:
    if kind == "result":
        return value
    if kind == "died":
        how = signal.Signals(-value).name if value and value < 0 else f"exit code {value}"
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:] if log.exists() else []
        failed = ChildFailed("\n".join([f"the process died ({how}); the end of {log}:", *lines]))
        failed.killed = value == -signal.SIGKILL
        raise failed
    errors = {"user_error": UserError, "failed": ChildFailed}
    raise errors.get(kind, Stopped)(value)


# ---------------------------------------------------------------- in the child
def run_child(request: dict[str, Any], channel: Channel) -> None:
    """Do what a request of `ChildProcesses.execute` says, in the child."""
    with contextlib.suppress(PermissionError):
        os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[:] = request["path"]
    log = request["log"]
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    file = os.open(log, flags, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    clean_logs()
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_die_with_parent, args=(channel, stop), daemon=True).start()
    lock = threading.Lock()

    def send(kind: str, value: object) -> None:
        with lock, contextlib.suppress(ConnectionError):
            channel.send({kind: value})

    progress = Progress(
        report=lambda done, total, metrics: send("progress", (done, total, dict(metrics))),
        should_stop=stop.is_set,
    )
    try:
        module, _, function = request["target"].partition(":")
        work = getattr(importlib.import_module(module), function)
        outcome = ("result", work(request["argument"], progress))
    except (UserError, Stopped) as error:
        outcome = ("stopped" if isinstance(error, Stopped) else "user_error", masked(str(error)))
    except Exception as error:
        line = in_one_line(error, Path(log).parent)
        if line:
            with contextlib.suppress(OSError):  # its disk may be the full one
                traceback.print_exc()
        outcome = ("failed", masked(line or traceback.format_exc()))
    send("outcome", outcome)
    util._exit_function()  # type: ignore[attr-defined]  # removes multiprocessing's folders
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _die_with_parent(channel: Channel, stop: threading.Event) -> None:
    with contextlib.suppress(EOFError):
        while True:
            channel.receive(None)
    stop.set()
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)
