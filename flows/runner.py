"""The process that computes a plan: `python -m flows.runner`, started by `rlt run`.

It leads a session of its own, so that Ctrl-C reaches only the command line, which passes it on. On
stdin it reads the pickled plan, then a byte for each Ctrl-C: the first waits for the current steps,
the second kills. The end of stdin (of a command line that died, or got a SIGTERM) leaves the steps
`GRACE_S`. Exit status: 0 done, 1 failed, 2 the user's mistake, 130 stopped.
"""

import io
import math
import os
import pickle
import signal
import sys
import threading
from pathlib import Path

from flows.cli.progress import Display
from flows.cli.terminal import clean_output
from flows.cli.watch import announced
from flows.executors import LocalExecutor
from flows.pipeline import run_plan
from flows.planning import Plan
from flows.schedule import expected_seconds, seen_seconds
from rlt_core.environment import exit_in_one_line
from tasks.child_process import GRACE_S, ChildProcesses


def main() -> int:
    """Compute the plan on stdin; return the exit status."""
    try:  # read no byte beyond the plan
        plan: Plan = pickle.load(io.BufferedReader(io.FileIO(0, closefd=False), 1))
    except (EOFError, pickle.UnpicklingError):
        return 130  # the command line ended while it sent the plan
    clean_output()
    folder = Path(plan.root) if "://" not in plan.root else Path(".")
    with exit_in_one_line(folder):
        seen = seen_seconds(plan)
        seconds = {
            node.name: seen.get(node.key) or expected_seconds(plan.estimates[node.key])
            for node in plan.missing
        }
        with (
            Display(len(seconds), weights=seconds, store=plan.store) as display,
            announced(plan.store, f"{plan.profile}/{plan.target}", display.note) as status,
        ):
            status.append(_run(plan, display))
            return status[-1]


def _run(plan: Plan, display: Display) -> int:
    children = ChildProcesses(sorted({node.stage.module for node in plan.missing}))

    def watch_stdin() -> None:
        for grace_s in (math.inf, 0.0):
            pressed = os.read(0, 1)  # unbuffered: no lock is held when this process exits
            grace_s = grace_s if pressed else GRACE_S
            display.stopping(grace_s)
            children.stop(grace_s)
            if not pressed:
                return

    signal.signal(signal.SIGTERM, lambda *_: children.stop())
    threading.Thread(target=watch_stdin, daemon=True).start()
    children.start()
    executor = LocalExecutor(children, display, plan.config.resources.cores)
    outcomes = run_plan(plan, [[spec] for spec in plan.specs()], executor, display)
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
