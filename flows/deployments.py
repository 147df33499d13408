"""The flows of `prefect.yaml`: `rlt/<experiment>` for every experiment, `rlt/<stage>` for every
stage."""

import logging
from functools import cache
from typing import Annotated, Any

from prefect import flow
from prefect.flows import Flow
from prefect.runtime import deployment, flow_run
from prefect.states import Failed, State
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows import prefect_artifacts
from flows.alone import node_alone
from flows.batches import by_stage
from flows.credentials import use_block
from flows.dispatch import PoolExecutor
from flows.forms import ProfileName, assignments, inputs_form, overrides_form
from flows.pipeline import Run, run_batches
from flows.request import Request
from flows.schedule import Schedule
from flows.stage_run import compute, compute_alone, require_empty, store_url
from rlt_core.errors import UserError
from rlt_core.experiments import ALL, EXPERIMENTS
from rlt_core.graph import Node, Planned
from rlt_core.overrides import load_config
from rlt_core.stages import STAGES
from rlt_core.store import Store
from tasks.stage import NodeSpec

STORE_HELP = "A folder or s3://bucket/prefix; empty: RLT_STORE of the worker."
SET_HELP = "Lines FIELD=VALUE as for `rlt run --set`, e.g. data.n_train=100."


def _mistake(error: UserError) -> State[Any]:
    """A failed state that says it in one line; the engine's traceback of that state is left out."""
    said = "exited with unexpected exception"
    log = logging.getLogger("prefect.flow_runs")
    log.addFilter(lambda record: said not in record.getMessage())
    return Failed(message=str(error))


# ---------------------------------------------------------------- experiments
def experiment_flow(name: str) -> Flow[..., State[Any]]:
    """The flow of `rlt/<experiment>`."""

    def run(
        profile: ProfileName = "tiny",  # type: ignore[valid-type]
        set: list[str] = [],  # noqa: B006 (Prefect copies it)
        store: str = "",
        budget_gpu_hours: Annotated[float, Field(ge=0)] | None = None,
    ) -> State[Any]:
        try:
            use_block()
            request = Request(
                target=name,
                profile=profile,
                overrides=tuple(set),
                store=store_url(store),
                budget_gpu_hours=budget_gpu_hours,
            )
            planned = request.plan()
        except UserError as error:
            return _mistake(error)
        return _dispatched(request, planned)

    run.__name__ = name.replace("-", "_")
    run.__doc__ = f"""Compute what the store lacks of {name}, each node in the pool of its stage.

    Args:
        profile: Which config to start from.
        set: {SET_HELP}
        store: {STORE_HELP}
        budget_gpu_hours: No node begins that would take the run beyond it; empty: no limit.
    """
    side_by_side: Any = ThreadPoolTaskRunner()
    return flow(name="rlt", flow_run_name=f"{name} {{profile}}", task_runner=side_by_side)(run)


def _dispatched(request: Request, planned: list[Planned]) -> State[Any]:
    """Send what is missing to the pools; then show the reports."""
    prefect_artifacts.show_plan(planned)
    missing = [item.node for item in planned if not item.hit]
    page = prefect_artifacts.RunPage(len(planned), len(planned) - len(missing))
    resources = request.config().resources

    def size_of(node: Node) -> int:
        own = resources.of(node.stage.name, node.variant)
        return own.nodes_per_run if node.stage.machines(own) == 1 else 1

    run = Run(request, planned, PoolExecutor(page), page, Schedule.of(request, planned))
    state = run_batches(run, by_stage(missing, size_of))
    opened = Store(request.store)
    for item in planned:
        node = item.node
        report = node.stage.name == "report" and opened.manifest(node.ref.kind, node.key)
        if report:
            prefect_artifacts.show_report(opened, report)
    return state


# ---------------------------------------------------------------- one stage
def _name_of_run() -> str:
    """What this run computes: the nodes that a parent sent, or what the form says."""
    given = flow_run.parameters
    specs = given.get("nodes") or []
    names = [NodeSpec.model_validate(spec).title for spec in specs]
    if len(names) == 1:
        return names[0]
    if names:
        return f"{len(names)} {NodeSpec.model_validate(specs[0]).stage}"
    stage = deployment.name or "stage"
    return f"{stage}[{given['variant']}] alone" if given.get("variant") else f"{stage} alone"


def stage_flow(stage: str) -> Flow[..., State[Any]]:
    """The flow of `rlt/<stage>`: with its own form, or for the nodes that a parent run sends."""
    inputs_type, overrides_type = inputs_form(stage), overrides_form(stage)
    usual_variant = STAGES[stage].default_variant
    no_inputs, no_overrides = inputs_type(), overrides_type()

    def run(
        profile: Any = "tiny",
        variant: Any = usual_variant,
        seed: Any = None,
        inputs: Any = no_inputs,
        overrides: Any = no_overrides,
        set: Any = [],  # noqa: B006
        store: Any = "",
        nodes: Any = [],  # noqa: B006
    ) -> State[Any]:
        try:
            use_block()
            if nodes:
                require_empty(inputs, overrides, set)
                return compute(stage, nodes)
            config = load_config(profile, [*assignments(stage, overrides), *set])
            given = inputs.model_dump()
            spec = node_alone(stage, config, variant, seed, given, Store(store_url(store)))
            return compute_alone(stage, spec)
        except UserError as error:
            return _mistake(error)

    run.__name__ = stage.replace("-", "_")
    run.__annotations__ = {
        "profile": ProfileName,
        "variant": str,
        "seed": int | None,
        "inputs": inputs_type,
        "overrides": overrides_type,
        "set": list[str],
        "store": str,
        "nodes": list[NodeSpec],
        "return": State[Any],
    }
    run.__doc__ = f"""Run {stage} alone, on artifacts that are in the store.

    Args:
        profile: Which config to start from; what is left empty below is the profile's.
        variant: Which of the stage's nodes, as in `rlt plan`: rlt, dataset, rank-3; empty if there is one only.
        seed: Training seed; empty: the profile's first.
        inputs: Artifacts to read, each by key, unique beginning of a key, or name such as tiny/teacher-grpo@0; empty: the latest run's.
        overrides: What differs from the profile.
        set: {SET_HELP}
        store: {STORE_HELP}
        nodes: Filled in by a parent run; leave it empty.
    """  # noqa: E501
    one_at_a_time: Any = ThreadPoolTaskRunner(max_workers=1)
    return flow(name="rlt", flow_run_name=_name_of_run, task_runner=one_at_a_time)(run)


# ---------------------------------------------------------------- by name
@cache
def __getattr__(name: str) -> Flow[..., State[Any]]:
    """The flow of an entrypoint, e.g. `flows.deployments.teacher_grpo`.

    Made when it is asked for: with its form it takes a twentieth of a second, and the process of a
    run needs one of them.
    """
    target = ALL if name == "all_experiments" else name.replace("_", "-")
    if target in EXPERIMENTS or target == ALL:
        return experiment_flow(target)
    if target in STAGES:
        return stage_flow(target)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
