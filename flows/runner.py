"""The process that runs a request: `python -m flows.runner`, started by the command line.

It leads a session of its own, so that Ctrl-C reaches the command line alone, which passes the wish
to stop on. First line on stdin: the request as JSON. Then: a line or the end of stdin (the command
line died) means stop. Exit status: 0 done, 1 failed, 2 the user's mistake, 130 stopped.
"""

from __future__ import annotations

import os
import sys
import threading

QUIET_PREFECT = {
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "DO_NOT_TRACK": "1",
}
"""What a direct run needs: its own display shows everything, and nothing leaves the machine."""


def main() -> int:
    """Run the request; returns the exit status."""
    for name, value in QUIET_PREFECT.items():
        os.environ.setdefault(name, value)
    from flows.carrier import Here
    from flows.cores import Cores
    from flows.display import Display
    from flows.local.up import launcher_file
    from flows.request import Request
    from rlt_core import warm

    request = Request.model_validate_json(sys.stdin.readline())
    planned = request.plan()
    missing = [item for item in planned if not item.hit]
    os.environ.setdefault(warm.VARIABLE, str(launcher_file()))
    launcher = warm.launcher_for(sorted({item.node.stage.module for item in missing}))

    def watch_stdin() -> None:
        sys.stdin.readline()
        launcher.stop()

    threading.Thread(target=watch_stdin, daemon=True).start()
    threading.Thread(target=launcher.warm).start()
    from flows.pipeline import Run, execute
    from flows.schedule import Schedule

    cores = Cores(request.config().resources.cores)
    with Display(len(planned), len(planned) - len(missing)) as display:
        run = Run(
            request, planned, Here(launcher, display, cores), display, Schedule.of(request, planned)
        )
        complete = execute(run)
    if complete:
        return 0
    statuses = {outcome.status for outcome in run.outcomes.values()}
    if "failed" in statuses:
        return 1
    if "mistake" in statuses:
        return 2
    return 130 if "stopped" in statuses else 1


if __name__ == "__main__":
    sys.exit(main())
