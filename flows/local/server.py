"""Waiting for a Prefect server and its workers on this machine."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.settings import PREFECT_API_URL, temporary_settings

from rlt_core.errors import UserError

READY_S = 120.0


def wait_healthy(api: str, alive: Callable[[], bool], log: Path) -> None:
    """Return once the server answers. Raises UserError when it ends or never does."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if not alive():
            raise UserError(f"the Prefect server ended at its start; {log} says why")
        try:
            with urllib.request.urlopen(f"{api}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise UserError(f"the Prefect server did not answer within {READY_S:.0f} s; see {log}")


def wait_for_worker(api: str, pool: str, alive: Callable[[], bool], log: Path) -> None:
    """Return once a worker of the pool is online."""
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    deadline = time.monotonic() + READY_S
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            if not alive():
                raise UserError(f"the worker of pool {pool} ended at its start; {log} says why")
            if client.read_workers_for_work_pool(pool, worker_filter=online):
                return
            time.sleep(0.3)
    raise UserError(f"the worker of pool {pool} is not online after {READY_S:.0f} s; see {log}")
