"""`rlt worker`: a worker whose runs may checkpoint when it is asked to end.

Prefect's own worker, asked to end, kills the processes of its runs at once and leaves them Running
on the server (`open_process` in prefect/utilities/processutils). Where the machine ends with its
worker, as an allocation of Slurm or a container does, nobody is left to checkpoint.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import psutil
import typer

from rlt_core.errors import UserError
from rlt_core.stages import STAGES
from tasks.child_process import share_fork_server

if TYPE_CHECKING:
    from prefect.workers.process import ProcessWorker

POLL_S = 0.2


def worker(
    pool: Annotated[str, typer.Option(help="Whose runs it takes; of type process.")] = "gpu",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Runs at once; else any number.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Other than that of any other worker.")] = None,
    with_healthcheck: Annotated[
        bool, typer.Option("--with-healthcheck", help="Answer at :8080/health.")
    ] = False,
) -> None:
    """Take runs of a pool; asked to end (SIGTERM, Ctrl-C), take no more, let those that run
    checkpoint, and end."""
    if not os.environ.get("PREFECT_API_URL"):
        raise UserError("PREFECT_API_URL is not set: the server's address, http://HOST:4200/api")
    # `python` of a run is the one that runs this.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    from prefect.logging.configuration import setup_logging
    from prefect.workers.process import ProcessWorker

    setup_logging()
    share_fork_server(sorted(stage.module for stage in STAGES.values() if stage.pool == pool))
    made = ProcessWorker(work_pool_name=pool, limit=limit, name=name)
    asyncio.run(_serve(made, limit or 0, with_healthcheck))


async def _serve(worker: ProcessWorker, limit: int, with_healthcheck: bool) -> None:
    asked = asyncio.Event()
    helpers = set(psutil.Process().children())  # the fork server and multiprocessing's own
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    work = asyncio.create_task(worker.start(with_healthcheck=with_healthcheck))
    wish = asyncio.create_task(asked.wait())
    await asyncio.wait((work, wish), return_when=asyncio.FIRST_COMPLETED)
    if not work.done():
        print("asked to end; what runs may checkpoint", flush=True)
        if worker.is_setup:
            await _finish(worker, limit, helpers)
        work.cancel()
    wish.cancel()
    await asyncio.wait((work,))
    if not work.cancelled():
        work.result()


async def _finish(worker: ProcessWorker, limit: int, helpers: set[psutil.Process]) -> None:
    """Ask all that runs to end, and return when it has. A run holds one of `limit` tokens and gives
    it to who waits in line for it, so that no other run begins; where there is no limit (0), those
    that begin meanwhile are asked, too."""
    tokens = [
        asyncio.create_task(worker.limiter.acquire_on_behalf_of(object())) for _ in range(limit)
    ]
    told: set[psutil.Process] = set()
    while True:
        runs = set(psutil.Process().children()) - helpers
        if not runs and all(each.done() for each in tokens):
            return
        for run in runs - told:
            with suppress(psutil.NoSuchProcess):
                run.terminate()
            told.add(run)
        await asyncio.sleep(POLL_S)
