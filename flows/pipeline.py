"""The loop of a run: plan → a task per batch of nodes → outcomes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prefect import allow_failure, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.executors import Executor, Outcome, Reporter
from flows.planning import Plan
from flows.schedule import Schedule, title_of
from rlt_core.printable import printable
from rlt_core.secrets import masked
from tasks.stage import NodeSpec

CAUSES = ("failed", "mistake", "over budget")
"""Outcomes that explain why a run failed; other nodes were not tried, or stopped on request."""
SHOWN_FAILURES = 3
"""Failed nodes that the message of a failed run quotes."""
NOT_RUN = Outcome("not run")


def run_here(plan: Plan, executor: Executor, reporter: Reporter) -> dict[str, Outcome]:
    """Run a plan as one flow in this process; return the nodes' outcomes by name."""
    outcomes: dict[str, Outcome] = {}
    side_by_side: Any = ThreadPoolTaskRunner()

    @flow(name="rlt", flow_run_name="{target}", task_runner=side_by_side)
    def graph(target: str, profile: str, overrides: list[str], store: str) -> State[Any]:
        outcomes.update(run_plan(plan, [[spec] for spec in plan.specs()], executor, reporter))
        return state_of(outcomes)

    state: State[Any] = graph(
        plan.target, plan.profile, list(plan.overrides), plan.root, return_state=True
    )
    if not outcomes:
        state.result()  # raises the loop's own error
    return outcomes


def run_plan(
    plan: Plan, batches: Sequence[Sequence[NodeSpec]], executor: Executor, reporter: Reporter
) -> dict[str, Outcome]:
    """Inside a flow: compute the plan's missing nodes, name what is committed, and return the
    outcomes of all nodes by name."""
    plan.save_config()
    outcomes = {item.node.key: Outcome("hit") for item in plan.nodes if item.hit}
    outcomes |= run_batches(batches, executor, reporter, Schedule.of(plan))
    plan.name_artifacts(key for key, outcome in outcomes.items() if outcome.is_committed)
    return {item.node.name: outcomes[item.node.key] for item in plan.nodes}


def run_batches(
    batches: Sequence[Sequence[NodeSpec]],
    executor: Executor,
    reporter: Reporter,
    schedule: Schedule,
) -> dict[str, Outcome]:
    """Inside a flow: run a task per batch, each after the batches that it reads, inputs first;
    return the nodes' outcomes by key. A termination signal stops the executor, and is raised."""
    names = {spec.key: spec.name for batch in batches for spec in batch}
    outcomes = dict.fromkeys(names, NOT_RUN)
    budget = schedule.budget

    def refusal(spec: NodeSpec) -> Outcome | None:
        """Why a node cannot run, if so."""
        reads = [ref.key for ref in spec.inputs.values() if ref.key in names]
        if missing := [names[key] for key in reads if not outcomes[key].is_committed]:
            return Outcome("not run", f"it reads {', '.join(missing)}")
        if budget and (reason := budget.admit(spec.key)):
            return Outcome("over budget", reason)
        return None

    @task(name="node", task_run_name="{name}", cache_policy=NO_CACHE)
    def run_batch(name: str, specs: list[NodeSpec]) -> State[Any]:
        ready = []
        for spec in specs:
            if refused := refusal(spec):
                outcomes[spec.key] = refused
                reporter.failed(spec.name, refused.status, refused.message)
            else:
                ready.append(spec.model_copy(update={"flow_run_id": flow_run.id or None}))
        if ready:
            priority = max(schedule.priorities.get(spec.key, 0.0) for spec in ready)
            try:
                found = executor.execute(ready, priority)
            except (
                Exception
            ) as error:  # the server or the store, while nodes were sent or looked up
                why = Outcome("failed", f"{type(error).__name__}: {error}")
                outcomes.update(dict.fromkeys((spec.key for spec in ready), why))
                raise
            for spec, outcome in zip(ready, found, strict=True):
                outcomes[spec.key] = outcome
                if budget:
                    manifest = spec.manifest()
                    budget.settle(spec.key, manifest.gpu_seconds if manifest else None)
        return state_of({spec.name: outcomes[spec.key] for spec in specs})

    futures: dict[str, PrefectFuture[Any]] = {}
    for batch in batches:
        reads = {ref.key for spec in batch for ref in spec.inputs.values()}
        parents: list[Any] = [allow_failure(futures[key]) for key in reads if key in futures]
        title = title_of(batch)
        named = run_batch.with_options(name=title)  # what a page shows before the task starts
        future = named.submit(title, list(batch), return_state=False, wait_for=parents)
        futures |= {spec.key: future for spec in batch}
    _wait_or_stop(futures.values(), executor)
    return outcomes


def _wait_or_stop(futures: Iterable[PrefectFuture[Any]], executor: Executor) -> None:
    """Wait for all tasks; on a termination signal stop the executor, go on waiting, and raise the
    signal at the end. Slurm and a worker may both send one, so a second one changes nothing."""
    signal: TerminationSignal | None = None
    done = False
    while not done:
        try:
            for future in futures:
                future.wait()
            done = True
        except TerminationSignal as received:
            signal = received
            executor.stop()
    if signal:
        raise signal


def state_of(outcomes: Mapping[str, Outcome]) -> State[Any]:
    """The state of a run by its nodes' outcomes (by name): Completed if every node is committed,
    named Cached if none had to be computed; else Failed, with what is missing and why."""
    if all(outcome.status == "hit" for outcome in outcomes.values()):
        return Completed(name="Cached", message=f"in the store already: {len(outcomes)} nodes")
    missing = {name: one for name, one in outcomes.items() if not one.is_committed}
    if not missing:
        return Completed(message=f"{len(outcomes)} nodes")
    causes = {name: one for name, one in missing.items() if one.status in CAUSES}
    parts = [f"{name}: {_last_line(one.message)}" for name, one in causes.items()]
    if (more := len(parts) - SHOWN_FAILURES) > 0:
        parts[SHOWN_FAILURES:] = [f"and {more} more failed"]
    if rest := [f"{name} ({one.status})" for name, one in missing.items() if name not in causes]:
        parts.append(f"not there: {', '.join(rest)}")
    stopped = not causes and any(one.status == "stopped" for one in missing.values())
    return (Cancelled if stopped else Failed)(message=printable(masked("; ".join(parts))))


def _last_line(message: str) -> str:
    """The last line of a message: of a traceback, the error."""
    lines = [line for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else ""
