"""What a Prefect server needs before a pipeline can run on it: pools, queues, the automation that
crashes zombies, the deployments of `prefect.yaml`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessWorker

from rlt_core.checkout import sources_changed_at
from rlt_core.errors import UserError

ROOT = Path(__file__).parents[2]
"""The source tree, which holds `prefect.yaml` and `infra/`."""
POOLS = ("cpu", "gpu")
PoolType = Literal["process", "kubernetes"]
ENGINE = "python -m prefect.engine"
PACKAGES = ("flows", "tasks", "rlt_core")
"""What deployments, and the forms of their pages, are made from, with `prefect.yaml`."""
QUEUES = {"high": 1, "default": 2}
"""Work queue -> priority; 1 goes first."""


def set_up(api: str, type_: PoolType = "process") -> None:
    """Make pools, queues and the automation that are not there yet; pools that are there keep their
    templates, which may have been edited.

    Raises UserError if a pool is there and of another type.
    """
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        for pool in POOLS:
            _make_pool(client, pool, type_)
        _make_automation(client, _of_the_tree("infra/automations/zombies.yaml"))


def _of_the_tree(name: str) -> Path:
    file = ROOT / name
    if not file.is_file():
        raise UserError(f"no {file}: install from a checkout of the source (pip install -e .)")
    return file


def _template(pool: str, type_: PoolType) -> dict[str, Any]:
    """The base job template: what a run of the pool is started with."""
    if type_ == "kubernetes":
        return dict(json.loads(_of_the_tree(f"infra/kubernetes/{pool}-pool.json").read_text()))
    template = ProcessWorker.get_default_base_job_template()
    # Named, the engine starts at once; else the worker first starts other processes to look for
    # code and environments of a project, of which ours has one: the package as installed.
    template["variables"]["properties"]["command"]["default"] = ENGINE
    return template


def _make_pool(client: SyncPrefectClient, pool: str, type_: PoolType) -> None:
    try:
        there = client.read_work_pool(pool)
    except ObjectNotFound:
        there = client.create_work_pool(
            WorkPoolCreate(name=pool, type=type_, base_job_template=_template(pool, type_))
        )
    if there.type != type_:
        raise UserError(
            f"the server has a pool {pool} of type {there.type}, not {type_}; delete it (`prefect "
            f"work-pool delete {pool}`; its deployments lose it) or ask for its type"
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


def deploy_what_changed(api: str, environment: Mapping[str, str], record: Path) -> bool:
    """`deploy`, unless the server has all that was deployed last time and the sources are the same;
    `record` holds what that was. Returns whether it deployed."""
    declared = _of_the_tree("prefect.yaml").stat().st_mtime
    sources = max(declared, sources_changed_at(PACKAGES))

    def now() -> str:
        return json.dumps({"sources": sources, "deployments": _deployments(api)}, sort_keys=True)

    if record.is_file() and record.read_text() == now():
        return False
    deploy(environment)
    record.write_text(now())
    return True


def _deployments(api: str) -> dict[str, str]:
    """Name -> id, of those of `prefect.yaml` that the server has."""
    declared = yaml.safe_load(_of_the_tree("prefect.yaml").read_text())["deployments"]
    ours = DeploymentFilter(
        name=DeploymentFilterName(any_=[deployment["name"] for deployment in declared])
    )
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        return {one.name: str(one.id) for one in client.read_deployments(deployment_filter=ours)}


def deploy(environment: Mapping[str, str]) -> None:
    """Deploy all of `prefect.yaml`. Raises UserError with Prefect's words if it fails."""
    _of_the_tree("prefect.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=ROOT, env=dict(environment), capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"prefect deploy --all failed:\n{done.stdout}{done.stderr}")
