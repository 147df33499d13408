"""Child processes that compute: forked from a server with the imports done, and ended with their
parent.

A child dies with its parent: the pipe between them closes, the child is asked to stop, has
`GRACE_S` to checkpoint, and is then killed with its whole process group. The same happens when the
parent asks (`ChildProcesses.stop`) and when the child receives a SIGTERM.

Importing torch, TRL and lighteval takes longer than many a node, so children are forks of a
multiprocessing fork server: one of this process, or the one that `rlt worker` shares with all its
runs (`share_fork_server`), for as long as the code is the one that it imported.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rlt_core.checkout import sources_changed_at
from rlt_core.environment import in_one_line
from rlt_core.errors import Stopped, UserError
from rlt_core.progress import Metrics, Progress
from rlt_core.secrets import clean_logs, masked

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

_context = multiprocessing.get_context("forkserver")
_starting = threading.Lock()


class ChildFailed(Exception):
    """The work raised, or its process died; the message says what is known."""


@dataclass(frozen=True)
class _Outcome:
    kind: str
    value: Any


# ---------------------------------------------------------------- fork servers
def share_fork_server(modules: Iterable[str]) -> None:
    """Start a fork server with `modules` imported and name it in the environment, so that the
    processes that this one starts fork their children from it.

    It ends with this process. Its socket is in a private folder of multiprocessing's.
    """
    _start_server(modules)
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    os.environ[SHARED_SERVER] = f"{sources_changed_at()}:{server._forkserver_address}"


def _start_server(modules: Iterable[str]) -> None:
    """Start this process's own server, unless it has one, and return while it imports."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _context.set_forkserver_preload(list(modules))
    forkserver.ensure_running()


def _use_shared_server() -> bool:
    """Fork from the server that the environment names; False if none has today's code."""
    changed_at, _, address = os.environ.get(SHARED_SERVER, "").partition(":")
    if changed_at != str(sources_changed_at()) or not Path(address).exists():
        return False
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    if server._forkserver_address is None:
        server._forkserver_address = address
        server._forkserver_alive_fd = os.pipe()[1]  # sent to children; this one keeps nobody alive
        server.ensure_running = resource_tracker.ensure_running
    return True


def _leave_shared_server() -> None:
    os.environ.pop(SHARED_SERVER, None)
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    server._forkserver_address = server._forkserver_alive_fd = None
    del server.ensure_running


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Keep a child from importing this process's main module, which may be Prefect's engine."""
    with _starting:
        main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


# ---------------------------------------------------------------- in the parent
class ChildProcesses:
    """Starts children and ends them. One per process; its methods may be called from threads."""

    def __init__(self, preload: Iterable[str]) -> None:
        """`preload`: modules that a server of this process's own imports once, for all children."""
        self._preload = list(preload)
        self._stop = threading.Event()

    @property
    def stopping(self) -> bool:
        """Whether children were asked to stop."""
        return self._stop.is_set()

    def start(self) -> None:
        """Start the fork server, so that it imports while something else happens."""
        with _starting:
            if not _use_shared_server():
                _start_server(self._preload)

    def stop(self) -> None:
        """Ask every child to checkpoint and end, and start no more."""
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
        self.start()
        ours, theirs = _context.Pipe(duplex=False)
        log.parent.mkdir(parents=True, exist_ok=True)
        lines = _NewLines(log, on_line)
        arguments = (target, argument, theirs, str(log), dict(os.environ))
        child = _context.Process(target=_child, args=arguments)
        with _without_main_module():
            try:
                child.start()
            except ConnectionRefusedError:  # the shared server was killed
                _leave_shared_server()
                _start_server(self._preload)
                child.start()
        theirs.close()
        try:
            outcome = self._follow(child, ours, on_progress, lines)
            child.join(EXIT_S)
        finally:
            _kill_group(child)
            child.join()
            ours.close()
            lines.pass_on(to_the_end=True)
        return _unpack(outcome, child, log)

    def _follow(
        self,
        child: BaseProcess,
        pipe: connection.Connection,
        on_progress: Callable[[int, int, Metrics], None],
        lines: _NewLines,
    ) -> _Outcome | None:
        """Read messages until the child ends; None if it died without sending an outcome."""
        deadline = None
        while True:
            lines.pass_on()
            if pipe.poll(0.2):
                try:
                    message = pipe.recv()
                except EOFError:
                    child.join(GRACE_S)
                    return None
                if isinstance(message, _Outcome):
                    return message
                on_progress(*message)
            if self.stopping and deadline is None:
                deadline = time.monotonic() + GRACE_S
                # Not child.terminate(), which does nothing once the server has died.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid or 0, signal.SIGTERM)
            if deadline is not None and time.monotonic() > deadline:
                return _Outcome("stopped", f"killed: no checkpoint within {GRACE_S:.0f} s")


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


def _unpack(outcome: _Outcome | None, child: BaseProcess, log: Path) -> Any:
    if outcome is None:
        code = child.exitcode
        how = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:] if log.exists() else []
        raise ChildFailed("\n".join([f"the process died ({how}); the end of {log}:", *lines]))
    if outcome.kind == "result":
        return outcome.value
    errors = {"user_error": UserError, "stopped": Stopped, "failed": ChildFailed}
    raise errors[outcome.kind](outcome.value)


def _kill_group(child: BaseProcess) -> None:
    """Kill a child with the processes that it started (it leads its own process group)."""
    if child.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)


# ---------------------------------------------------------------- in the child
def _child(
    target: str, argument: Any, pipe: connection.Connection, log: str, environment: dict[str, str]
) -> None:
    with contextlib.suppress(PermissionError):
        os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(ENVIRONMENT | environment)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in paths if path and path not in sys.path]
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    clean_logs()
    stop = _StopRequest()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.make())
    threading.Thread(target=_die_with_parent, args=(stop,), daemon=True).start()
    lock = threading.Lock()

    def send(message: object) -> None:
        with lock, contextlib.suppress(BrokenPipeError):
            pipe.send(message)

    progress = Progress(
        report=lambda done, total, metrics: send((done, total, dict(metrics))),
        should_stop=lambda: stop.deadline is not None,
    )
    try:
        module, _, function = target.partition(":")
        outcome = _Outcome(
            "result", getattr(importlib.import_module(module), function)(argument, progress)
        )
    except UserError as error:
        outcome = _Outcome("user_error", str(error))
    except Stopped as error:
        outcome = _Outcome("stopped", str(error))
    except Exception as error:
        line = in_one_line(error, Path(log).parent)
        if line:
            with contextlib.suppress(OSError):  # its disk may be the full one
                traceback.print_exc()
        outcome = _Outcome("failed", line or traceback.format_exc())
    if isinstance(outcome.value, str):
        outcome = _Outcome(outcome.kind, masked(outcome.value))
    send(outcome)


class _StopRequest:
    """Whether the child was asked to stop, and when it will be killed."""

    deadline: float | None = None
    """On the monotonic clock; None without a request."""

    def make(self) -> None:
        """The first request counts."""
        if self.deadline is None:
            self.deadline = time.monotonic() + GRACE_S


def _die_with_parent(stop: _StopRequest) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    stop.make()
    assert stop.deadline is not None
    time.sleep(max(0.0, stop.deadline - time.monotonic()))
    os.killpg(0, signal.SIGKILL)
