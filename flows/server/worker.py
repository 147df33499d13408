"""A Prefect worker that shuts down gracefully.

Prefect's own worker kills its runs' processes at SIGTERM and leaves the runs Running on the server
(`open_process` in prefect/utilities/processutils). Where the machine ends with its worker, as in a
Slurm allocation or a container, no process is left to checkpoint.
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import psutil
from prefect.logging.configuration import setup_logging
from prefect.workers.process import ProcessWorker

from rlt_core.stages import STAGES
from tasks.child_process import share_fork_server

POLL_S = 0.2


def serve(pool: str, limit: int | None, name: str | None, with_healthcheck: bool) -> None:
    """Run a worker until SIGTERM or Ctrl-C. It then accepts no new runs, terminates the active ones
    and returns once they have checkpointed."""
    # A run's `python` must be this one.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    setup_logging()
    share_fork_server(sorted(stage.module for stage in STAGES.values() if stage.pool == pool))
    worker = ProcessWorker(work_pool_name=pool, limit=limit, name=name)
    asyncio.run(_serve(worker, limit or 0, with_healthcheck))


async def _serve(worker: ProcessWorker, limit: int, with_healthcheck: bool) -> None:
    stop = asyncio.Event()
    helpers = set(psutil.Process().children())  # the fork server and multiprocessing's own
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    work = asyncio.create_task(worker.start(with_healthcheck=with_healthcheck))
    stop_request = asyncio.create_task(stop.wait())
    await asyncio.wait((work, stop_request), return_when=asyncio.FIRST_COMPLETED)
    if not work.done():
        print("stop request: active runs may checkpoint", flush=True)
        if worker.is_setup:
            await _finish(worker, limit, helpers)
        work.cancel()
    stop_request.cancel()
    await asyncio.wait((work,))
    if not work.cancelled():
        work.result()


async def _finish(worker: ProcessWorker, limit: int, helpers: set[psutil.Process]) -> None:
    """Terminate all runs and return once they have ended.

    A run holds one of `limit` tokens and passes it to the next task in line, which is ours, so that
    no other run starts. Without a limit (0), runs that start meanwhile are terminated too.
    """
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
