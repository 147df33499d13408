"""The process that runs a request: `python -m flows.runner`, started by the command line.

It leads a session of its own, so that Ctrl-C reaches the command line alone, which passes the wish
to stop on. First line on stdin: the request as JSON. Then: a line or the end of stdin (the command
line died) means stop. Exit status: 0 done, 1 failed, 2 the user's mistake, 130 stopped.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

from flows.request import Request
from rlt_core.environment import exit_in_one_line
from rlt_core.errors import UserError

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
    request = Request.model_validate_json(sys.stdin.readline())
    store = Path(request.store) if "://" not in request.store else Path(".")
    with exit_in_one_line(store), TemporaryDirectory(prefix="rlt-prefect-") as spare:
        for name, value in QUIET_PREFECT.items():
            os.environ.setdefault(name, value)
        _use_writable_prefect_home(spare)
        return _run(request)


def _use_writable_prefect_home(spare: str) -> None:
    """Prefect keeps its database in ~/.prefect, which a container may be unable to write. Raises
    UserError where PREFECT_HOME names such a folder."""
    named = os.environ.get("PREFECT_HOME")
    try:
        home = Path(named or "~/.prefect").expanduser()
        home.mkdir(parents=True, exist_ok=True)
        NamedTemporaryFile(dir=home).close()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home at all
        if named:
            raise UserError(f"PREFECT_HOME={named} cannot be written: {error}") from None
        os.environ["PREFECT_HOME"] = spare


def _require_api() -> None:
    """Raises UserError if PREFECT_API_URL, of the environment or of Prefect's profile, names a
    server that does not answer."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    if url := PREFECT_API_URL.value():
        with get_client(sync_client=True) as client:
            error = client.api_healthcheck()
        if error:
            raise UserError(
                f"PREFECT_API_URL={url}: no Prefect server answers ({error}); start it, or unset "
                "the variable (`prefect config unset PREFECT_API_URL`) to run without a server"
            )


def _run(request: Request) -> int:
    from flows.cli.progress import Display
    from flows.cores import Cores
    from flows.executors import LocalExecutor
    from tasks.child_process import ChildProcesses

    _require_api()
    planned = request.plan()
    missing = [item for item in planned if not item.hit]
    launcher = ChildProcesses(sorted({item.node.stage.module for item in missing}))

    def watch_stdin() -> None:
        sys.stdin.readline()
        launcher.stop()

    threading.Thread(target=watch_stdin, daemon=True).start()
    threading.Thread(target=launcher.start).start()
    from flows.pipeline import Run, execute
    from flows.schedule import Schedule

    cores = Cores(request.config().resources.cores)
    with Display(len(planned), len(planned) - len(missing)) as display:
        run = Run(
            request,
            planned,
            LocalExecutor(launcher, display, cores),
            display,
            Schedule.of(request, planned),
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
