"""The flows that are deployed: `rlt/<experiment>` and `rlt/<stage>`.

An experiment's run plans, and sends each missing node to the pool of its stage. A stage's run
computes on its worker: the nodes that a parent run sent, or one that its form describes.
"""

import logging
import os
from collections.abc import Mapping
from contextvars import copy_context
from inspect import signature
from textwrap import shorten
from typing import Annotated, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import TerminationSignal
from prefect.flows import Flow
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Completed, Failed, State
from pydantic import Field

from flows import prefect_artifacts
from flows.cli.options import store_place
from flows.cli.watch import announced
from flows.credentials import use_block
from flows.executors import LocalExecutor, Outcome
from flows.forms import ProfileName, assignments, essentials_form, inputs_form, overrides_form
from flows.pipeline import Outcomes, Work, run_batches, run_plan
from flows.planning import Plan, plan_stage
from flows.pool_executor import PoolExecutor
from flows.schedule import by_stage, title_of
from rlt_core.errors import UserError
from rlt_core.experiments import ALL, EXPERIMENTS
from rlt_core.overrides import load_config
from rlt_core.printable import printable
from rlt_core.secrets import masked
from rlt_core.stages import STAGES
from rlt_core.store import Ref, Store
from tasks.child_process import ChildProcesses
from tasks.stage import NodeSpec

STORE_HELP = "A folder or s3://bucket/prefix; empty: RLT_STORE of the worker."
SHOWN_NAME = 120
"""Characters of a run's name."""
CAUSES = ("failed", "mistake", "over budget")
"""Outcomes that explain why a run failed; other nodes were not tried, or stopped on request."""
SHOWN_FAILURES = 3
"""Failed nodes that the message of a failed run quotes."""
SET_HELP = "Lines FIELD=VALUE as for `rlt run --set`, e.g. data.n_train=100."


# A task, because a page lists the artifacts of a run, in no order, before those of its tasks.
show_parts = task(name="tables and figures", cache_policy=NO_CACHE)(prefect_artifacts.show_parts)


def _store_url(given: str) -> str:
    """The store of a run. Raises UserError if nothing names one."""
    store = given or os.environ.get("RLT_STORE")
    if not store:
        raise UserError("no store: fill in `store`, or set RLT_STORE where the worker starts")
    return store_place(store)


def _refused(error: UserError) -> State[Any]:
    """A failed state with the error's one line, and no traceback in the run's log."""
    traceback = "exited with unexpected exception"
    log = logging.getLogger("prefect.flow_runs")
    log.addFilter(lambda record: traceback not in record.getMessage())
    return Failed(message=printable(masked(str(error))))


# ---------------------------------------------------------------- tasks and states
def as_task(title: str, work: Work) -> Work:
    """A batch of nodes as a task of this run."""
    outcomes: Outcomes = {}

    @task(name=title, task_run_name=title, cache_policy=NO_CACHE)
    def node() -> State[Any]:
        outcomes.update(work())
        return state_of(outcomes)

    context = copy_context()  # of the run: a thread has none

    def run() -> Outcomes:
        context.run(node, return_state=True)
        return outcomes

    return run


def state_of(outcomes: Mapping[str, Outcome]) -> State[Any]:
    """The state of a run by its nodes' outcomes (by name): Completed if every node is committed,
    named Cached if none had to be computed; else Failed, with what is missing and why."""
    if all(outcome.status == "hit" for outcome in outcomes.values()):
        return Completed(name="Cached", message=f"in the store already: {len(outcomes)} nodes")
    missing = {name: one for name, one in outcomes.items() if not one.is_committed}
    if not missing:
        return Completed(message=f"{len(outcomes)} nodes")
    statuses = {one.status for one in missing.values()}
    causes = {name: one for name, one in missing.items() if one.status in CAUSES} or missing
    # The last line of a traceback is the error.
    said = [f"{name}: {one.message.strip().rpartition(chr(10))[2]}" for name, one in causes.items()]
    names = ", ".join([*list(missing)[:SHOWN_FAILURES], "…"][: len(missing)])
    said[SHOWN_FAILURES:] = [f"{len(missing)} of {len(outcomes)} nodes are missing: {names}"]
    state = Cancelled if "stopped" in statuses and not statuses & {*CAUSES} else Failed
    return state(message=printable(masked("; ".join(said))))


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
            url = _store_url(store)
            plan = Plan.of(name, profile, set, store=url, budget_gpu_hours=budget_gpu_hours)
            plan.require_computable()
            return _compute_plan(plan)
        except UserError as error:
            return _refused(error)

    run.__name__ = name.replace("-", "_")
    run.__doc__ = f"""Compute what the store lacks of {name}, each node in the pool of its stage.

    Args:
        profile: Which config to start from.
        set: {SET_HELP}
        store: {STORE_HELP}
        budget_gpu_hours: No node starts that would take the run beyond it; empty: no limit.
    """
    return flow(name="rlt", flow_run_name=_run_name)(run)


def _compute_plan(plan: Plan) -> State[Any]:
    """Send the missing nodes to their pools, and show plan, progress and reports on the page. Of a
    run that fails or is stopped, what exists is reported."""
    place = f"{plan.profile} {plan.target}"
    prefect_artifacts.show_plan(plan.nodes, place)
    page = prefect_artifacts.RunPage(len(plan.nodes), len(plan.nodes) - len(plan.missing))
    batches, executor = by_stage(plan.specs()), PoolExecutor(page, plan.target)
    with announced(plan.store, f"{plan.profile}/{plan.target}", page.note) as status:
        try:
            state = state_of(run_plan(plan, batches, executor, page, as_task))
        except TerminationSignal:
            status.append(130)
            _say_what_exists(plan)
            raise
        status.append(0 if state.is_completed() else 1)
    for node in (item.node for item in plan.nodes if item.node.stage.name == "report"):
        if report := plan.store.manifest(node.ref.kind, node.key):
            prefect_artifacts.show_report(plan.store, report, place)
            show_parts(plan.store, report, place)
    if not state.is_completed():
        _say_what_exists(plan)
    return state


def _say_what_exists(plan: Plan) -> None:
    for experiment in plan.report_what_exists():
        get_run_logger().info("what exists: rlt report %s --profile %s", experiment, plan.profile)


# ---------------------------------------------------------------- stages
def stage_flow(stage: str) -> Flow[..., State[Any]]:
    """The flow of `rlt/<stage>`, with a form of its own."""
    forms = essentials_form(stage), inputs_form(stage), overrides_form(stage)
    essentials_type, inputs_type, overrides_type = forms
    no_essentials, no_inputs, no_overrides = (form() for form in forms)

    def run(
        profile: ProfileName = "tiny",  # type: ignore[valid-type]
        essentials: essentials_type = no_essentials,  # type: ignore[valid-type]
        variant: str = STAGES[stage].default_variant,
        seed: int | None = None,
        inputs: inputs_type = no_inputs,  # type: ignore[valid-type]
        set: list[str] = [],  # noqa: B006
        store: str = "",
        overrides: overrides_type = no_overrides,  # type: ignore[valid-type]
        nodes: list[dict[str, Any]] = [],  # noqa: B006
    ) -> State[Any]:
        try:
            use_block()
            given = inputs.model_dump()  # type: ignore[attr-defined]
            edits = [*assignments(stage, overrides, essentials), *set]
            if nodes and (given or edits):
                raise UserError(
                    "`nodes` was filled in by a parent run, so that the other fields would be "
                    "ignored; empty it to run this stage alone"
                )
            if nodes:
                return _compute(stage, [NodeSpec.model_validate(node) for node in nodes])
            config = load_config(profile, edits)
            spec = plan_stage(stage, config, variant, seed, given, Store(_store_url(store)))
            return _compute_alone(stage, spec)
        except UserError as error:
            return _refused(error)

    run.__name__ = stage.replace("-", "_")
    run.__doc__ = f"""Run {stage} alone, on artifacts that are in the store.

    Args:
        profile: Which config to start from; what is left empty below is the profile's.
        essentials: The fields that are edited most often.
        variant: Which of the stage's nodes, as in `rlt plan`: rlt, dataset, rank-3; empty if there is one only.
        seed: Training seed; empty: the profile's first.
        inputs: Artifacts to read, each by key, unique beginning of a key, or name such as tiny/teacher-grpo@0; empty: the latest run's.
        set: {SET_HELP}
        store: {STORE_HELP}
        overrides: All other fields, by section; resources last.
    """  # noqa: E501
    made = flow(name="rlt", flow_run_name=_run_name)(run)
    hidden = {"nodes"} if STAGES[stage].essentials else {"nodes", "essentials"}
    shown = [each for each in signature(run).parameters.values() if each.name not in hidden]
    made.__signature__ = signature(run).replace(parameters=shown)  # type: ignore[attr-defined]
    return made


def _run_name() -> str:
    """The name of a run: the nodes that a parent sent, or what the form says."""
    given = flow_run.parameters
    if specs := [NodeSpec.model_validate(spec) for spec in given.get("nodes") or []]:
        return title_of(specs)
    name = deployment.name or "rlt"
    edits = given.get("set") or []
    if name in STAGES:
        inputs = inputs_form(name).model_validate(given.get("inputs") or {}).model_dump()
        overrides = overrides_form(name).model_validate(given.get("overrides") or {})
        essentials = essentials_form(name).model_validate(given.get("essentials") or {})
        edits = [*assignments(name, overrides, essentials), *edits]
        edits += [f"{input_}={value}" for input_, value in inputs.items()]
    if given.get("seed") is not None:
        edits = [*edits, f"seed={given['seed']}"]
    variant = f"[{given['variant']}]" if given.get("variant") else ""
    text = " ".join([f"{name}{variant}", str(given.get("profile")), *edits])
    return shorten(printable(masked(text)), SHOWN_NAME, placeholder=" …")


def _compute_alone(stage: str, spec: NodeSpec) -> State[Any]:
    """Compute a node that a form describes; its name means this artifact from then on."""
    keys = {name: ref.key for name, ref in spec.inputs.items()}
    with get_client(sync_client=True) as client:  # a retry reads the same inputs
        run = client.read_flow_run(flow_run.id)
        client.update_flow_run(run.id, parameters={**run.parameters, "inputs": keys})
    for name, key in keys.items():
        get_run_logger().info("input %s: %s", name, key)
    state = _compute(stage, [spec])
    if state.is_completed():
        ref = Ref(kind=STAGES[stage].kind, key=spec.key)
        Store(spec.store).set_ref(f"{spec.profile}/{spec.name}", ref)
    return state


def _compute(stage: str, specs: list[NodeSpec]) -> State[Any]:
    """Compute nodes of one stage on this worker, one after the other."""
    found = {spec.key: spec.manifest() for spec in specs}
    run_id = {"flow_run_id": flow_run.id}
    missing = [spec.model_copy(update=run_id) for spec in specs if found[spec.key] is None]
    outcomes = {spec.key: Outcome("hit") for spec in specs if found[spec.key]}
    if missing:
        page = prefect_artifacts.NodePage()
        executor = LocalExecutor(ChildProcesses([STAGES[stage].module]), page, cores=1)
        batches = [[spec] for spec in missing]
        outcomes |= run_batches(batches, executor, page, as_task=as_task, at_once=1)
    else:
        for manifest in found.values():
            assert manifest
            prefect_artifacts.show_node(manifest)
    return state_of({spec.name: outcomes[spec.key] for spec in specs})


# ---------------------------------------------------------------- entrypoints
all_experiments = experiment_flow(ALL)
for _name in (*EXPERIMENTS, *STAGES):
    if (_function := _name.replace("-", "_")) not in globals():
        globals()[_function] = (stage_flow if _name in STAGES else experiment_flow)(_name)
