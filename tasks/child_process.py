"""Children that compute: forked from a preloaded server, owned, and ended with their parent.

A child dies with its parent: the pipe between them closes, the child is asked to stop, has
`GRACE_S` to checkpoint, and is then killed with its whole process group. The same order holds when
the parent asks (`ChildProcesses.stop`) or the child gets a SIGTERM.
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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from rlt_core.environment import in_one_line
from rlt_core.errors import Stopped, UserError
from rlt_core.progress import Metrics, Progress

GRACE_S = 30.0
EXIT_S = 5.0
"""What a child that has said its last word gets to exit."""
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
"""Of the children, where it is not set otherwise."""


class ChildFailed(Exception):
    """The work raised, or its process died; the message says what is known."""


@dataclass(frozen=True)
class _Outcome:
    kind: str
    value: Any


class ChildProcesses(Protocol):
    """Starts children and ends them."""

    @property
    def stopping(self) -> bool:
        """Whether children were asked to stop."""

    def start(self) -> None:
        """Import while something else happens."""

    def stop(self) -> None:
        """Ask every child to checkpoint and end, and start no more."""

    def execute(
        self,
        target: str,
        argument: Any,
        *,
        log: Path,
        on_progress: Callable[[int, int, Metrics], None],
        on_line: Callable[[str], None],
    ) -> Any:
        """Call `module:function(argument, progress)` in a child and return what it returns."""


class LocalChildren:
    """Starts children and ends them. One a process; its methods may be called from threads."""

    def __init__(self, preload: Iterable[str]) -> None:
        """`preload`: modules that the server imports once, for all children."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))
        self._stop = threading.Event()

    @property
    def stopping(self) -> bool:
        """Whether children were asked to stop."""
        return self._stop.is_set()

    def start(self) -> None:
        """Start the server, so that it imports while something else happens."""
        from multiprocessing.forkserver import ensure_running

        ensure_running()

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

        The child's standard output and error go to the file `log`, and line by line to `on_line`.
        Raises UserError and Stopped as the child did, and ChildFailed with the child's traceback or
        the end of its log.
        """
        if self.stopping:
            raise Stopped("stopped on request")
        ours, theirs = self._context.Pipe(duplex=False)
        log.parent.mkdir(parents=True, exist_ok=True)
        lines = _NewLines(log)
        child = self._context.Process(target=_child, args=(target, argument, theirs, str(log)))
        child.start()
        theirs.close()
        try:
            outcome = self._follow(child, ours, on_progress, lambda: lines.pass_on(on_line))
            child.join(EXIT_S)
        finally:
            _kill_group(child)
            child.join()
            ours.close()
            lines.pass_on(on_line, to_the_end=True)
        return _unpack(outcome, child, log)

    def _follow(
        self,
        child: BaseProcess,
        pipe: connection.Connection,
        on_progress: Callable[[int, int, Metrics], None],
        pass_on_lines: Callable[[], None],
    ) -> _Outcome | None:
        """Read messages until the child ends; None if it died without a last word."""
        deadline = None
        while True:
            pass_on_lines()
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
    """What is appended to a log file from now on, in whole lines."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._offset = log.stat().st_size if log.exists() else 0

    def pass_on(self, on_line: Callable[[str], None], to_the_end: bool = False) -> None:
        """Say every new line; the last one may be unfinished, then it waits for its end."""
        if not self._log.exists():
            return
        with self._log.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        if not to_the_end:
            new = new[: new.rfind(b"\n") + 1]
        self._offset += len(new)
        for line in new.decode(errors="replace").split("\n"):
            # A progress bar rewrites its line: what stands there at last is said.
            if shown := line.rpartition("\r")[2].rstrip():
                on_line(shown)


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
    """End what a child left behind (it leads its own process group)."""
    if child.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)


# ---------------------------------------------------------------- inside the child
def _child(target: str, argument: Any, pipe: connection.Connection, log: str) -> None:
    with contextlib.suppress(PermissionError):
        os.setpgid(0, 0)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    wish = _Wish()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: wish.make())
    threading.Thread(target=_die_with_parent, args=(wish,), daemon=True).start()
    lock = threading.Lock()

    def send(message: object) -> None:
        with lock, contextlib.suppress(BrokenPipeError):
            pipe.send(message)

    progress = Progress(
        report=lambda done, total, metrics: send((done, total, dict(metrics))),
        should_stop=lambda: wish.deadline is not None,
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
    send(outcome)


class _Wish:
    """That the child ends, and when it will be killed."""

    deadline: float | None = None
    """Of the monotonic clock; None: nobody wishes it to end."""

    def make(self) -> None:
        """The first wish counts."""
        if self.deadline is None:
            self.deadline = time.monotonic() + GRACE_S


def _die_with_parent(wish: _Wish) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    wish.make()
    assert wish.deadline is not None
    time.sleep(max(0.0, wish.deadline - time.monotonic()))
    os.killpg(0, signal.SIGKILL)
