"""A launcher that stays: one process a machine that has the imports done, for all runs on it.

Importing torch, TRL and lighteval takes longer than many a node. A worker's machine may keep one
process of `python -m tasks.warm FILE`; runs that find it through RLT_LAUNCHER=FILE fork their
children from there. All else is as with `LocalChildren`: a child is asked to stop when the run that
wanted it asks, ends or dies.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from rlt_core.errors import Stopped, UserError
from rlt_core.progress import Metrics, Progress
from rlt_core.stages import STAGES
from tasks.child_process import ENVIRONMENT, ChildFailed, ChildProcesses, LocalChildren

VARIABLE = "RLT_LAUNCHER"
ROOMS = ("rlt_core", "tasks")
"""Where the code of children comes from."""
ERRORS: dict[str, type[Exception]] = {
    "mistake": UserError, "stopped": Stopped, "failed": ChildFailed,
}  # fmt: skip


def sources_stamp(rooms: Iterable[str] = ROOMS) -> float:
    """Newest change of what those rooms hold (seconds since the epoch)."""
    root = Path(__file__).parents[1]
    files = (file for room in rooms for file in (root / room).rglob("*.*"))
    return max(file.stat().st_mtime for file in files if file.suffix != ".pyc")


def launcher_for(modules: Iterable[str]) -> ChildProcesses:
    """The machine's warm launcher if there is one with today's code, else one of our own."""
    file = os.environ.get(VARIABLE)
    if file and Path(file).is_file():
        access = json.loads(Path(file).read_text())
        address = ("127.0.0.1", int(access["port"]))
        key = bytes.fromhex(access["key"])
        if access["sources"] == sources_stamp():
            with contextlib.suppress(OSError, EOFError, AuthenticationError):
                Client(address, authkey=key).close()
                return WarmLauncher(address, key)
    return LocalChildren(modules)


class WarmLauncher:
    """Has children started by the process that stays."""

    def __init__(self, address: tuple[str, int], key: bytes) -> None:
        self._address, self._key = address, key
        self._stop = threading.Event()

    @property
    def stopping(self) -> bool:
        """Whether children were asked to stop."""
        return self._stop.is_set()

    def start(self) -> None:
        """It is."""

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
        """As `LocalChildren.execute`; the child has this process's environment."""
        if self.stopping:
            raise Stopped("stopped on request")
        told = False
        with Client(self._address, authkey=self._key) as pipe:
            pipe.send((target, argument, str(log), dict(os.environ)))
            while True:
                if self.stopping and not told:
                    told = True
                    pipe.send("stop")
                if not pipe.poll(0.2):
                    continue
                try:
                    kind, value = pipe.recv()
                except (EOFError, OSError):
                    raise ChildFailed("the launcher of this machine died") from None
                if kind == "progress":
                    on_progress(*value)
                elif kind == "line":
                    on_line(value)
                elif kind == "result":
                    return value
                else:
                    raise ERRORS[kind](value)


# ---------------------------------------------------------------- the process that stays
def in_environment(argument: Any, progress: Progress) -> Any:
    """Inside the child: take the environment of the run that wanted it, then do its work."""
    target, inner, environment = argument
    os.environ.clear()
    os.environ.update(ENVIRONMENT | environment)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in paths if path and path not in sys.path]
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)(inner, progress)


def _serve_one(pipe: Connection) -> None:
    """One child for one connection; the end of the connection is the wish to stop."""
    with contextlib.suppress(EOFError, OSError), pipe:
        target, argument, log, environment = pipe.recv()
        launcher = LocalChildren(())  # children come from the server that this process has already

        def watch() -> None:
            with contextlib.suppress(EOFError, OSError):
                pipe.recv()
            launcher.stop()

        def send(kind: str, value: Any) -> None:
            with contextlib.suppress(OSError):
                pipe.send((kind, value))

        threading.Thread(target=watch, daemon=True).start()
        try:
            result = launcher.execute(
                "tasks.warm:in_environment",
                (target, argument, environment),
                log=Path(log),
                on_progress=lambda done, total, metrics: send("progress", (done, total, metrics)),
                on_line=lambda line: send("line", line),
            )
        except (UserError, Stopped, ChildFailed) as error:
            kind = next(name for name, known in ERRORS.items() if isinstance(error, known))
            send(kind, str(error))
        else:
            send("result", result)


def serve(file: Path) -> None:
    """Serve until killed; `file` (private) says where and with which key."""
    launcher = LocalChildren(sorted(stage.module for stage in STAGES.values()))
    access = {"key": secrets.token_hex(16), "sources": sources_stamp()}
    launcher.start()
    with Listener(("127.0.0.1", 0), authkey=bytes.fromhex(str(access["key"]))) as listener:
        written = file.with_suffix(".new")
        descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            json.dump({**access, "port": listener.address[1]}, stream)
        os.replace(written, file)  # runs may look for it at any time
        while True:
            try:
                pipe = listener.accept()
            except (AuthenticationError, EOFError, OSError):
                continue  # somebody else's knock
            threading.Thread(target=_serve_one, args=(pipe,), daemon=True).start()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
