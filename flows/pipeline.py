"""The flow: carries out the nodes of a target that the store lacks, independent ones side by
side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefect import allow_failure, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.batches import Batch, one_by_one
from flows.executors import Executor, Outcome, Reporter
from flows.request import Request, name_nodes
from flows.schedule import Schedule
from rlt_core.errors import UserError
from rlt_core.graph import Node, Planned
from rlt_core.store import Store
from tasks.stage import NodeSpec

CAUSES = ("failed", "mistake", "over budget")
"""What a run failed of; the rest was only not tried, or stopped on request."""
SHOWN_FAILURES = 3
"""Failed nodes that the message of a failed run quotes."""


@dataclass
class Run:
    """One run of a request: what its nodes share."""

    request: Request
    planned: list[Planned]
    executor: Executor
    reporter: Reporter
    schedule: Schedule
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """Node key -> what became of it."""

    def spec(self, node: Node) -> NodeSpec:
        """The node as it travels to where it is computed."""
        resources = self.request.config().resources.of(node.stage.name, node.variant)
        spec = NodeSpec.of(node, self.request.store, self.request.profile, resources)
        return spec.model_copy(update={"flow_run_id": flow_run.id or None})

    def execute(self, nodes: Sequence[Node]) -> State[Any]:
        """Compute nodes of one stage whose inputs were tried."""
        ready = []
        for node in nodes:
            missing = [
                parent.name
                for parent in node.inputs.values()
                if not self.outcomes.get(parent.key, NOT_RUN).there
            ]
            if missing:
                self.outcomes[node.key] = Outcome("not run", f"it reads {', '.join(missing)}")
                self.reporter.failed(node.name, "not run", self.outcomes[node.key].message)
            elif refusal := self.schedule.budget and self.schedule.budget.admit(node.key):
                self.outcomes[node.key] = Outcome("over budget", refusal)
                self.reporter.failed(node.name, "over budget", refusal)
            else:
                ready.append(node)
        if ready:
            specs = [self.spec(node) for node in ready]
            priority = max(self.schedule.ways[node.key] for node in ready)
            try:
                outcomes = self.executor.execute(specs, priority)
            except UserError as error:
                outcomes = [Outcome("mistake", str(error))] * len(ready)
            self.outcomes |= {n.key: outcome for n, outcome in zip(ready, outcomes, strict=True)}
            if self.schedule.budget:
                for spec in specs:
                    made = spec.manifest()
                    self.schedule.budget.settle(spec.key, made.gpu_seconds if made else None)
        return state_of({node.name: self.outcomes[node.key] for node in nodes})

    def close(self) -> State[Any]:
        """Name what is there; Completed only if that is all."""
        found = {p.node.name: self.outcomes.get(p.node.key, NOT_RUN) for p in self.planned}
        there = [p.node for p in self.planned if found[p.node.name].there]
        name_nodes(Store(self.request.store), self.request.profile, there)
        if self.planned and all(item.hit for item in self.planned):
            return Completed(name="Cached", message=f"all {len(there)} nodes were in the store")
        return state_of(found)


NOT_RUN = Outcome("not run")


def summary(message: str) -> str:
    """The line of a failure that says most: of a traceback, its last."""
    lines = [line for line in message.strip().splitlines() if line.strip()]
    return lines[-1] if lines else ""


def state_of(outcomes: Mapping[str, Outcome]) -> State[Any]:
    """Completed if every node (by name) is there; else what is missing and why."""
    missing = {name: outcome for name, outcome in outcomes.items() if not outcome.there}
    if not missing:
        return Completed(message=f"{len(outcomes)} nodes")
    causes = {name: one for name, one in missing.items() if one.status in CAUSES}
    quoted = [
        f"{name}: {summary(one.message)}" for name, one in list(causes.items())[:SHOWN_FAILURES]
    ]
    left = [f"{name} ({one.status})" for name, one in missing.items() if name not in causes]
    more = len(causes) - len(quoted)
    parts = [*quoted, *([f"and {more} more failed"] if more > 0 else [])]
    parts += [f"not there: {', '.join(left)}"] if left else []
    stopped = not causes and any(one.status == "stopped" for one in missing.values())
    return (Cancelled if stopped else Failed)(message="; ".join(parts))


def run_batches(run: Run, batches: Sequence[Batch]) -> State[Any]:
    """Inside a flow: a task a batch, each after those that it reads.

    When the process is asked to end, so is what it started; then it ends.
    """
    nodes = {item.node.key: item.node for item in run.planned}
    run.outcomes |= {item.node.key: Outcome("hit") for item in run.planned if item.hit}

    @task(name="node", task_run_name="{name}", cache_policy=NO_CACHE)
    def execute(name: str, keys: list[str]) -> State[Any]:
        return run.execute([nodes[key] for key in keys])

    futures: dict[str, PrefectFuture[Any]] = {}
    for batch in batches:
        read = {parent.key for node in batch.nodes for parent in node.inputs.values()}
        waiting: list[Any] = [allow_failure(futures[key]) for key in read if key in futures]
        future = execute.submit(batch.name, batch.keys, return_state=False, wait_for=waiting)
        futures |= dict.fromkeys(batch.keys, future)
    wait_or_stop(list(futures.values()), run.executor)
    return run.close()


def wait_or_stop(futures: Sequence[PrefectFuture[Any]], executor: Executor) -> None:
    """Wait for all; when this process is asked to end, stop what runs and raise that wish. Asked
    again meanwhile, as Slurm and a worker may both do, it goes on waiting."""
    asked: TerminationSignal | None = None
    ended = False
    while not ended:
        try:
            for future in futures:
                future.wait()
            ended = True
        except TerminationSignal as wish:
            asked = wish
            executor.stop()
    if asked:
        raise asked


def execute(run: Run) -> bool:
    """Run the graph as one flow on this machine; True if every node is there at the end."""
    missing = [item.node for item in run.planned if not item.hit]
    side_by_side: Any = ThreadPoolTaskRunner()

    @flow(name="rlt", flow_run_name="{target}", task_runner=side_by_side)
    def graph(target: str, profile: str, overrides: list[str], store: str) -> State[Any]:
        return run_batches(run, one_by_one(missing))

    request = run.request
    state = graph(
        request.target,
        request.profile,
        list(request.overrides),
        request.store,
        return_state=True,
    )
    return state.is_completed()
