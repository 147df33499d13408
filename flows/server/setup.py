"""Set up a Prefect server for pipelines: pools, queues, the automation against zombie runs, and the
deployments of `prefect.yaml`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    WorkerFilter,
    WorkerFilterStatus,
)
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from rlt_core.checkout import sources_changed_at
from rlt_core.errors import UserError
from rlt_core.experiments import EXPERIMENTS
from rlt_core.stages import STAGES

ROOT = Path(__file__).parents[2]
"""The source tree, with `prefect.yaml` and `infra/`."""
POOLS = ("cpu", "gpu")
PoolType = Literal["process", "kubernetes"]
ENGINE = "python -m prefect.engine"
DEPLOYED = ("flows", "tasks", "rlt_core")
"""Packages that deployments and their forms are made from."""
AUTOMATIONS = ("zombies", "unstarted")
JOB_START_S = 4200
"""Seconds after which a Kubernetes Job surely does not start: more than its pool's
pod_watch_timeout_seconds."""
QUEUES = {"high": 1, "default": 2}
"""Work queue -> priority; 1 goes first."""


def set_up(type_: PoolType = "process") -> None:
    """Create missing pools, queues and automations. Existing pools keep their templates, which may
    have been edited.

    Raises UserError if a pool exists with another type.
    """
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            _make_pool(client, pool, type_)
        for name in AUTOMATIONS:
            automation = yaml.safe_load(_source_file(f"infra/automations/{name}.yaml").read_text())
            if name == "unstarted" and type_ == "kubernetes":
                automation["trigger"]["within"] = JOB_START_S
            _make_automation(client, AutomationCore.model_validate(automation))


def _source_file(name: str) -> Path:
    file = ROOT / name
    if not file.is_file():
        raise UserError(f"no {file}: install from a checkout of the source (pip install -e .)")
    return file


def _template(pool: str, type_: PoolType) -> dict[str, Any]:
    """Return the base job template of a pool."""
    if type_ == "kubernetes":
        return dict(json.loads(_source_file(f"infra/kubernetes/{pool}-pool.json").read_text()))
    template = ProcessWorker.get_default_base_job_template()
    # With a command the engine starts at once. Without one the worker first starts processes that
    # look for a project's code and environment; ours is the installed package.
    template["variables"]["properties"]["command"]["default"] = ENGINE
    return template


def _make_pool(client: SyncPrefectClient, pool: str, type_: PoolType) -> None:
    try:
        found = client.read_work_pool(pool)
    except ObjectNotFound:
        found = client.create_work_pool(
            WorkPoolCreate(name=pool, type=type_, base_job_template=_template(pool, type_))
        )
    if found.type != type_:
        raise UserError(
            f"the server has a pool {pool} of type {found.type}, not {type_}; delete it (`prefect "
            f"work-pool delete {pool}`; its deployments lose it) or choose its type with --pools"
        )
    for name, priority in QUEUES.items():
        try:
            queue = client.read_work_queue_by_name(name, work_pool_name=pool)
        except ObjectNotFound:
            queue = client.create_work_queue(name, work_pool_name=pool)
        if queue.priority != priority:
            client.update_work_queue(queue.id, priority=priority)


def _make_automation(client: SyncPrefectClient, wanted: AutomationCore) -> None:
    """Create the automation; replace one with this name and another content."""
    for old in client.read_automations_by_name(wanted.name):
        if AutomationCore.model_validate(old.model_dump(exclude={"id"})) == wanted:
            return
        client.delete_automation(old.id)
    client.create_automation(wanted)


def has_worker(pool: str) -> bool:
    """Return whether a worker of the pool is online."""
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    with get_client(sync_client=True) as client:
        return bool(client.read_workers_for_work_pool(pool, worker_filter=online))


def sources_stamp() -> str:
    """Return the newest modification time of the sources of the deployments."""
    edited = _source_file("prefect.yaml").stat().st_mtime
    return str(max(edited, sources_changed_at(DEPLOYED)))


def is_deployed() -> bool:
    """Return whether the server has all deployments of `declared`."""
    names = [deployment["name"] for deployment in declared()["deployments"]]
    ours = DeploymentFilter(name=DeploymentFilterName(any_=names))
    with get_client(sync_client=True) as client:
        return len(client.read_deployments(deployment_filter=ours)) == len(names)


def declared() -> dict[str, Any]:
    """Return `prefect.yaml` with a deployment of each stage and experiment of the user's own."""
    found: dict[str, Any] = yaml.safe_load(_source_file("prefect.yaml").read_text())
    for name in sorted({*EXPERIMENTS, *STAGES} - {one["name"] for one in found["deployments"]}):
        pool = STAGES[name].pool if name in STAGES else "cpu"
        found["deployments"].append(
            {
                "name": name,
                "entrypoint": f"flows.deployments.{name.replace('-', '_')}",
                "work_pool": {"name": pool, "work_queue_name": "default"},
                "tags": ["stage" if name in STAGES else "experiment"],
            }
        )
    return found


def deploy(environment: Mapping[str, str]) -> None:
    """Deploy all of `declared`. Raises UserError with Prefect's output if that fails."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(declared(), file)
        file.flush()
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all",
             "--prefect-file", file.name],
            cwd=ROOT, env=dict(environment), capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode:
        raise UserError(f"prefect deploy --all failed:\n{done.stdout}{done.stderr}")
