"""Which of the nodes that could begin goes first, and what a budget leaves undone."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flows.request import Request
from rlt_core.config import StageResources
from rlt_core.estimate import NodeEstimate, estimates, on_gpu
from rlt_core.graph import Node, Planned
from rlt_core.store import Store

CPU_FLOPS = 1e11
"""Of a node that runs on no GPU; only the order of nodes hangs on it."""


def hours(estimate: NodeEstimate) -> float:
    """How long a node takes, well enough to compare it with others."""
    if estimate.wall_hours is not None:
        return estimate.wall_hours
    return 2 * (estimate.parameters or 0) * estimate.tokens / CPU_FLOPS / 3600


def longest_ways(nodes: Sequence[Node], lengths: Mapping[str, float]) -> dict[str, float]:
    """Node key -> from its beginning to the end of the graph on the longest way, in the unit of
    `lengths` (those of the nodes, by key).

    `nodes`: inputs first. Who has the longest way goes first: list scheduling by critical path
    (Graham 1969, https://doi.org/10.1137/0117039; Hu 1961, https://doi.org/10.1287/opre.9.6.841).
    """
    after: dict[str, float] = {}
    ways: dict[str, float] = {}
    for node in reversed(nodes):
        ways[node.key] = lengths[node.key] + after.get(node.key, 0.0)
        for parent in node.inputs.values():
            after[parent.key] = max(after.get(parent.key, 0.0), ways[node.key])
    return ways


class Budget:
    """GPU-hours of one run: what nodes have taken, and for those under way what they may take."""

    def __init__(
        self, gpu_hours: float, estimates: Mapping[str, NodeEstimate], gpus: Mapping[str, int]
    ) -> None:
        """`gpus`: those that each node holds, 0 of one that runs on none."""
        self._limit, self._estimates, self._gpus = gpu_hours, estimates, gpus
        self._spent = 0.0
        self._under_way: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    @property
    def spent(self) -> float:
        """GPU-hours of the nodes that have ended."""
        return self._spent

    def admit(self, key: str) -> str | None:
        """Count a node as under way; or say why it may not begin."""
        needed = self._estimates[key].gpu_hours
        if needed is None and self._gpus[key]:
            return (
                "what it takes is not known, so that no budget can be kept; run `rlt fetch` first"
            )
        with self._lock:
            promised = sum(hours for hours, _ in self._under_way.values())
            left = self._limit - self._spent - promised
            if (needed or 0.0) > left:
                return (
                    f"it takes about {needed:.3g} GPU-hours, and of "
                    f"{self._limit:g} there are {max(left, 0.0):.3g} left"
                )
            self._under_way[key] = (needed or 0.0, time.monotonic())
        return None

    def settle(self, key: str, gpu_seconds: float | None) -> None:
        """A node has ended: what its manifest says it took; without one, all its GPUs since it was
        admitted."""
        with self._lock:
            _, since = self._under_way.pop(key)
            if gpu_seconds is None:
                gpu_seconds = self._gpus[key] * (time.monotonic() - since)
            self._spent += gpu_seconds / 3600


@dataclass(frozen=True)
class Schedule:
    """What a run knows of its nodes before they run."""

    ways: Mapping[str, float]
    """`longest_ways` of the nodes to be computed."""
    budget: Budget | None

    @classmethod
    def of(cls, request: Request, planned: Sequence[Planned]) -> Schedule:
        """Of what a request's store lacks."""
        missing = [item.node for item in planned if not item.hit]
        nodes = [item.node for item in planned]
        config, limit = request.config(), request.budget_gpu_hours
        found = estimates(config, nodes, Store(request.store))
        gpus = {
            node.key: _gpus(node, config.resources.of(node.stage.name, node.variant))
            for node in missing
        }
        budget = None if limit is None else Budget(limit, found, gpus)
        lengths = {key: hours(estimate) for key, estimate in found.items()}
        return cls(longest_ways(missing, lengths), budget)


def _gpus(node: Node, resources: StageResources) -> int:
    """GPUs that a node holds on all its machines."""
    if node.stage.pool == "cpu" or not on_gpu(resources):
        return 0
    return node.stage.machines(resources) * node.stage.gpus(resources)
