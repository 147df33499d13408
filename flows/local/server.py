"""What a Prefect server needs before a pipeline can run on it: pools, queues, the automation that
crashes zombies, the deployments of `prefect.yaml`."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessWorker

from rlt_core.errors import UserError

ROOT = Path(__file__).parents[2]
"""The source tree, which holds `prefect.yaml` and `infra/`."""
POOLS = ("cpu", "gpu")
ENGINE = "python -m prefect.engine"
QUEUES = {"high": 1, "default": 2}
"""Work queue -> priority; 1 goes first."""
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


def furnish(api: str) -> None:
    """Make pools, queues and the automation that are not there yet."""
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        for pool in POOLS:
            _make_pool(client, pool)
        _make_automation(client, ROOT / "infra" / "automations" / "zombies.yaml")


def _make_pool(client: SyncPrefectClient, pool: str) -> None:
    try:
        client.read_work_pool(pool)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        # Named, the engine starts at once; else the worker first starts other processes to look for
        # code and environments of a project, of which ours has one: the package as installed.
        template["variables"]["properties"]["command"]["default"] = ENGINE
        client.create_work_pool(
            WorkPoolCreate(name=pool, type="process", base_job_template=template)
        )
    for queue, priority in QUEUES.items():
        try:
            found = client.read_work_queue_by_name(queue, work_pool_name=pool)
        except ObjectNotFound:
            found = client.create_work_queue(queue, work_pool_name=pool)
        if found.priority != priority:
            client.update_work_queue(found.id, priority=priority)


def _make_automation(client: SyncPrefectClient, file: Path) -> None:
    """Create the automation; one of that name which says something else is renewed."""
    wanted = AutomationCore.model_validate(yaml.safe_load(file.read_text()))
    for old in client.read_automations_by_name(wanted.name):
        if AutomationCore.model_validate(old.model_dump(exclude={"id"})) == wanted:
            return
        client.delete_automation(old.id)
    client.create_automation(wanted)


def deploy(environment: Mapping[str, str]) -> None:
    """Deploy all of `prefect.yaml`. Raises UserError with Prefect's words if it fails."""
    file = ROOT / "prefect.yaml"
    if not file.is_file():
        raise UserError(f"no {file}: install from a checkout of the source (pip install -e .)")
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=ROOT, env=dict(environment), capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"prefect deploy --all failed:\n{done.stdout}{done.stderr}")


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
