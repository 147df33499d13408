"""The process that computes a plan: `python -m flows.runner`, started by `rlt run`.

It leads a session of its own, so that Ctrl-C reaches only the command line, which passes the stop
request on. On stdin it reads the pickled plan; the end of stdin (also that of a command line that
died) is a stop request. Exit status: 0 done, 1 failed, 2 the user's mistake, 130 stopped.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

from flows.cli.terminal import clean_output
from flows.planning import Plan
from flows.server.connection import require_server
from flows.server.ephemeral import serve
from rlt_core.environment import exit_in_one_line
from rlt_core.errors import UserError

QUIET_PREFECT = {
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
}
"""Prefect's settings for a run without a server: the display of `rlt run` shows everything."""


def main() -> int:
    """Compute the plan on stdin; return the exit status."""
    plan: Plan = pickle.load(sys.stdin.buffer)
    clean_output()
    folder = Path(plan.root) if "://" not in plan.root else Path(".")
    with exit_in_one_line(folder), TemporaryDirectory(prefix="rlt-prefect-") as spare:
        for name, value in QUIET_PREFECT.items():
            os.environ.setdefault(name, value)
        _use_writable_prefect_home(spare)
        with nullcontext() if require_server() else serve():
            return _run(plan)


def _use_writable_prefect_home(spare: str) -> None:
    """Prefect keeps its database in ~/.prefect, which a container may be unable to write. Raises
    UserError if PREFECT_HOME names such a folder."""
    named = os.environ.get("PREFECT_HOME")
    try:
        home = Path(named or "~/.prefect").expanduser()
        home.mkdir(parents=True, exist_ok=True)
        NamedTemporaryFile(dir=home).close()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home at all
        if named:
            raise UserError(f"PREFECT_HOME={named} cannot be written: {error}") from None
        os.environ["PREFECT_HOME"] = spare


def _run(plan: Plan) -> int:
    from flows.cli.progress import Display
    from tasks.child_process import ChildProcesses

    children = ChildProcesses(sorted({node.stage.module for node in plan.missing}))

    def watch_stdin() -> None:
        os.read(sys.stdin.fileno(), 1)  # unbuffered: no lock is held when this process exits
        children.stop()

    threading.Thread(target=watch_stdin, daemon=True).start()
    threading.Thread(target=children.start).start()  # while this process imports Prefect
    from flows.executors import LocalExecutor
    from flows.pipeline import run_here

    with Display(len(plan.nodes), len(plan.nodes) - len(plan.missing)) as display:
        executor = LocalExecutor(children, display, plan.config.resources.cores)
        outcomes = run_here(plan, executor, display)
    statuses = {outcome.status for outcome in outcomes.values()}
    if statuses <= {"hit", "done"}:
        return 0
    if "failed" in statuses:
        return 1
    if "mistake" in statuses:
        return 2
    return 130 if "stopped" in statuses else 1


if __name__ == "__main__":
    sys.exit(main())
