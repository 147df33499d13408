"""A run of one stage on a worker: what the flows of `rlt/<stage>` do."""

from __future__ import annotations

import os
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Completed, State
from pydantic import BaseModel

from flows import prefect_artifacts
from flows.cli.options import store_place
from flows.cores import Cores
from flows.executors import LocalExecutor, Outcome
from flows.pipeline import state_of, wait_or_stop
from rlt_core.errors import UserError
from rlt_core.stages import STAGES
from rlt_core.store import Ref, Store
from tasks.child_process import ChildProcesses
from tasks.stage import NodeSpec


def store_url(given: str) -> str:
    """The store that a run works on. Raises UserError if nothing names one."""
    store = given or os.environ.get("RLT_STORE")
    if not store:
        raise UserError("no store: fill in `store`, or set RLT_STORE where the worker starts")
    return store_place(store)


def require_empty(inputs: BaseModel, overrides: BaseModel, set_: list[str]) -> None:
    """Raises UserError if a form was edited that a parent run had filled in with nodes."""
    if inputs.model_dump() or overrides.model_dump() or set_:
        raise UserError(
            "`nodes` was filled in by a parent run, so that the other fields would be ignored; "
            "empty it to run this stage alone"
        )


def compute_alone(stage: str, spec: NodeSpec) -> State[Any]:
    """Compute a node that a form describes; it is the latest run's from then on."""
    _record_inputs({name: ref.key for name, ref in spec.inputs.items()})
    state = compute(stage, [spec])
    if state.is_completed():
        ref = Ref(kind=STAGES[stage].kind, key=spec.key)
        Store(spec.store).set_ref(f"{spec.profile}/{spec.name}", ref)
    return state


def _record_inputs(keys: dict[str, str]) -> None:
    """A retry reads what this try read, and the page says what it was."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run.id)
        client.update_flow_run(run.id, parameters={**run.parameters, "inputs": keys})
    for name, key in keys.items():
        get_run_logger().info("input %s: %s", name, key)


def compute(stage: str, specs: list[NodeSpec]) -> State[Any]:
    """Compute nodes of one stage on this worker, one after the other."""
    found = {spec.key: spec.manifest() for spec in specs}
    missing = [spec for spec in specs if found[spec.key] is None]
    launcher = ChildProcesses([STAGES[stage].module])
    if missing:
        launcher.start()
    # One at a time here; the limit of the pool's workers says how many runs share a machine.
    executor = LocalExecutor(launcher, prefect_artifacts.NodePage(), Cores(1))
    outcomes = {spec.name: Outcome("hit") for spec in specs if found[spec.key]}

    @task(name="node", task_run_name="{name}", cache_policy=NO_CACHE)
    def execute(name: str, spec: NodeSpec) -> State[Any]:
        spec = spec.model_copy(update={"flow_run_id": flow_run.id})
        [outcomes[name]] = executor.execute([spec])
        return state_of({name: outcomes[name]})

    futures = [execute.submit(spec.name, spec, return_state=False) for spec in missing]
    wait_or_stop(futures, executor)
    if missing:
        return state_of(outcomes)
    for manifest in found.values():
        assert manifest
        prefect_artifacts.show_node(manifest)
    keys = ", ".join(spec.key for spec in specs)
    return Completed(name="Cached", message=f"{keys} was in the store")
