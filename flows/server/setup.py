"""Set up a Prefect server for pipelines: pools, queues, automations and deployments.

`python -m flows.server.setup` prints `prefect.yaml`.
"""

import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from rlt_core.errors import UserError
from rlt_core.experiments import ALL, EXPERIMENTS
from rlt_core.stages import STAGES

HERE = Path(__file__).parent
"""Folder with the templates of pools and the automations."""
GROUPS = {
    "dataset": "data", "base": "models", "trace": "traces", "score": "traces", "rank": "evaluation",
}  # fmt: skip
"""First word of a stage's name -> its tag; the others are tags themselves."""
POOLS = ("cpu", "gpu")
ENGINE = "python -m prefect.engine"
AUTOMATIONS = ("zombies", "unstarted")
JOB_START_S = 4200
"""Seconds after which a Kubernetes Job surely does not start: more than its pool's
pod_watch_timeout_seconds."""
QUEUES = {"high": 1, "default": 2}
"""Work queue -> priority; 1 goes first."""


def set_up(type_: str = "process") -> None:
    """Create missing pools, queues and automations. Existing pools keep their templates, which may
    have been edited.

    Raises UserError if a pool exists with another type.
    """
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            _make_pool(client, pool, type_)
        for name in AUTOMATIONS:
            automation = yaml.safe_load((HERE / "automations" / f"{name}.yaml").read_text())
            if name == "unstarted" and type_ == "kubernetes":
                automation["trigger"]["within"] = JOB_START_S
            _make_automation(client, AutomationCore.model_validate(automation))


def _template(pool: str, type_: str) -> dict[str, Any]:
    """Return the base job template of a pool."""
    if type_ == "kubernetes":
        return dict(json.loads((HERE / "pools" / f"{pool}-pool.json").read_text()))
    template = ProcessWorker.get_default_base_job_template()
    # With a command the engine starts at once. Without one the worker first starts processes that
    # look for a project's code and environment; ours is the installed package.
    template["variables"]["properties"]["command"]["default"] = ENGINE
    return template


def _make_pool(client: SyncPrefectClient, pool: str, type_: str) -> None:
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
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    with get_client(sync_client=True) as client:
        return bool(client.read_workers_for_work_pool(pool, worker_filter=online))


def declared() -> dict[str, Any]:
    """Return the deployments of all experiments and stages, the user's own included, in the form of
    `prefect.yaml`."""
    return {
        "name": "rlt-pipeline",
        "build": [],
        "push": [],
        "pull": [],  # workers have the package installed
        "deployments": [_deployment(name) for name in (*EXPERIMENTS, ALL, *STAGES)],
    }


def _deployment(name: str) -> dict[str, Any]:
    pool, tags = "cpu", ["experiment"]
    if name in STAGES:
        first = name.partition("-")[0]
        pool, tags = STAGES[name].pool, ["stage", GROUPS.get(first, first)]
    function = "all_experiments" if name == ALL else name.replace("-", "_")
    return {
        "name": name,
        "description": _description(name),
        "entrypoint": f"flows.deployments.{function}",
        "work_pool": {"name": pool, "work_queue_name": "default"},
        "tags": tags,
    }


def _description(name: str) -> str:
    """Return what an experiment or a stage does, reads, writes and needs, as a paragraph."""
    if name == ALL:
        return "The union of the paper's experiments; what they share is computed once."
    module = inspect.getmodule(EXPERIMENTS[name] if name in EXPERIMENTS else STAGES[name].config)
    text = " ".join((inspect.getdoc(module) or "").split())
    if name in EXPERIMENTS:
        return (
            f"{text} Computes what the store lacks; every node runs in its pool, and `rlt plan "
            f"{name}` estimates hours and memory. How to read its report: docs/experiments.md."
        )
    stage = STAGES[name]
    reads = "artifacts of any kind"
    if (inputs := stage.inputs) is not None:
        named = [f"{one} ({help[:1].lower()}{help[1:]})" for one, help in inputs.items()]
        reads = ", ".join(named) or "no artifact"
    written = ["a model"] * stage.model + [f"table `{table}`" for table in stage.tables]
    return (
        f"{text} Reads {reads}. Writes {', '.join(written) or 'HTML and CSV'} (columns: "
        f"docs/sql.md). Runs in the pool {stage.pool}; `rlt plan` estimates hours and memory. "
        "Edited fields give a new key and leave earlier artifacts alone."
    )


def deploy(environment: Mapping[str, str]) -> None:
    """Deploy all of `declared`. Raises UserError with Prefect's output if that fails."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(declared(), file)
        file.flush()
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all",
             "--prefect-file", file.name],
            env=dict(environment), capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode:
        raise UserError(f"prefect deploy --all failed:\n{done.stdout}{done.stderr}")


HEADER = """\
# The deployments, which `rlt setup-server` makes on any server (or `rlt up`, which starts all).
# Written by `python -m flows.server.setup > prefect.yaml`, from the declarations of stages.
#
# Two pools. `cpu`: whole pipelines, which mostly wait, and small stages; its workers need no limit,
# and must have none when pipelines may queue: a pipeline that holds the last place waits for ever
# for its own stages. `gpu`: every stage that computes with a model; `prefect worker start --pool
# gpu --limit N` says how many of its runs a machine takes. Queue `high` of either goes first.
"""

if __name__ == "__main__":
    print(HEADER + yaml.safe_dump(declared(), sort_keys=False, width=100), end="")
