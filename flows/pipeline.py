"""The flow: runs the nodes of a target that the store lacks, independent ones side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prefect import allow_failure, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.cores import Cores
from flows.display import Display
from flows.request import Request, name_nodes
from rlt_core.errors import Stopped, UserError
from rlt_core.graph import Node, Planned
from rlt_core.launch import ChildFailed, Launcher
from rlt_core.store import Store
from tasks import node as node_task
from tasks.spec import NodeSpec

THERE = ("hit", "done")


@dataclass
class Run:
    """One run of a request: what its nodes share."""

    request: Request
    planned: list[Planned]
    launcher: Launcher
    display: Display
    cores: Cores
    statuses: dict[str, str] = field(default_factory=dict)
    """Node key -> hit | done | failed | mistake | stopped | not run."""

    def spec(self, node: Node) -> NodeSpec:
        """The node as it travels to the child that computes it."""
        resources = self.request.config().resources.of(node.stage.name)
        spec = NodeSpec.of(node, self.request.store, self.request.profile, resources)
        return spec.model_copy(update={"flow_run_id": flow_run.id or None})

    def compute(self, node: Node) -> State[Any]:
        """Compute one node whose inputs were tried; never raises, returns its final state."""
        missing = [n.name for n in node.inputs.values() if self.statuses[n.key] not in THERE]
        if missing:
            return self._end(node, "not run", f"it reads {', '.join(missing)}")
        spec = self.spec(node)
        try:
            with self.cores.take(spec.resources.threads):
                if not self.launcher.stopping:
                    self.display.started(node.name)
                manifest = node_task.run(
                    spec,
                    self.launcher,
                    lambda done, total, metrics: self.display.progress(
                        node.name, done, total, metrics
                    ),
                )
        except Stopped as error:
            return self._end(node, "stopped", str(error))
        except UserError as error:
            return self._end(node, "mistake", str(error))
        except ChildFailed as error:
            return self._end(node, "failed", str(error))
        self.statuses[node.key] = "done"
        self.display.finished(node.name, manifest)
        return Completed(message=f"{node.key} committed")

    def _end(self, node: Node, status: str, message: str) -> State[Any]:
        self.statuses[node.key] = status
        self.display.failed(node.name, status, message)
        state = Cancelled if status == "stopped" else Failed
        return state(message=message)

    def close(self) -> State[Any]:
        """Name what is there; Completed only if that is all."""
        there = [p.node for p in self.planned if self.statuses.get(p.node.key) in THERE]
        name_nodes(Store(self.request.store), self.request.profile, there)
        if len(there) == len(self.planned):
            return Completed(message=f"{len(there)} nodes")
        return Failed(message=_missing(self.planned, self.statuses))


def _missing(planned: list[Planned], statuses: Mapping[str, str]) -> str:
    left = [
        f"{item.node.name} ({statuses.get(item.node.key, 'not run')})"
        for item in planned
        if statuses.get(item.node.key) not in THERE
    ]
    return f"{len(left)} nodes are missing: {', '.join(left)}"


def execute(run: Run) -> bool:
    """Run the graph as one flow on this machine; True if every node is there at the end."""
    nodes = {item.node.key: item.node for item in run.planned}

    @task(name="node", task_run_name="{name}", cache_policy=NO_CACHE)
    def compute(name: str, key: str) -> State[Any]:
        return run.compute(nodes[key])

    side_by_side: Any = ThreadPoolTaskRunner()

    @flow(name="rlt", flow_run_name="{target}", task_runner=side_by_side)
    def graph(target: str, profile: str, overrides: list[str], store: str) -> State[Any]:
        futures: dict[str, PrefectFuture[Any]] = {}
        for item in run.planned:
            node = item.node
            if item.hit:
                run.statuses[node.key] = "hit"
                continue
            parents = [futures[n.key] for n in node.inputs.values() if n.key in futures]
            waiting: list[Any] = [allow_failure(future) for future in parents]
            futures[node.key] = compute.submit(
                node.name, node.key, return_state=False, wait_for=waiting
            )
        for future in futures.values():
            future.wait()
        return run.close()

    request = run.request
    state = graph(
        request.target,
        request.profile,
        list(request.overrides),
        request.store,
        return_state=True,
    )
    return state.is_completed()
