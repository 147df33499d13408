"""Scheduling: which nodes run together, how long they take, and which a budget leaves out."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from flows.planning import Plan
from rlt_core.estimate import NodeEstimate, estimates
from rlt_core.graph import Node
from rlt_core.stages import STAGES, parse_config
from rlt_core.store import Manifest
from tasks.stage import NodeSpec

CPU_FLOPS = 1e11
"""FLOP/s assumed for a node that runs on no GPU; affects only a run's bar."""
START_S = 1.0
"""Seconds that the shortest node takes."""


# ---------------------------------------------------------------- batches
def title_of(specs: Sequence[NodeSpec]) -> str:
    """The title of a batch: its node's, or the stage and the number of nodes."""
    return specs[0].title if len(specs) == 1 else f"{len(specs)} {specs[0].stage}"


def by_stage(specs: Sequence[NodeSpec]) -> list[list[NodeSpec]]:
    """Batches of nodes of one stage that become ready together, at most `nodes_per_run` each.

    `specs` come inputs first, and so do the batches: a stage's nodes on one level (the longest path
    from a node without missing inputs) are cut into batches.
    """
    levels: dict[str, int] = {}
    ready: dict[tuple[int, str, int], list[NodeSpec]] = {}
    for spec in specs:
        above = [levels[ref.key] for ref in spec.inputs.values() if ref.key in levels]
        levels[spec.key] = 1 + max(above, default=0)
        alone = STAGES[spec.stage].machines(spec.resources) > 1
        size = 1 if alone else spec.resources.nodes_per_run
        ready.setdefault((levels[spec.key], spec.stage, size), []).append(spec)
    ordered = sorted(ready.items(), key=lambda item: item[0][0])
    return [
        same[first : first + size]
        for (_, _, size), same in ordered
        for first in range(0, len(same), size)
    ]


# ---------------------------------------------------------------- cores and GPUs
class Slots:
    """Cores or GPUs for nodes, handed out in the order of asking."""

    def __init__(self, count: int) -> None:
        self._count, self._free = count, threading.Semaphore(count)
        self._turn = threading.Lock()

    @contextmanager
    def take(self, slots: int) -> Iterator[None]:
        """Wait for that many slots (all, if there are fewer) and hold them inside the block."""
        slots = min(slots, self._count)
        with self._turn:  # one waits at a time: else many small nodes would keep out a large one
            for _ in range(slots):
                self._free.acquire()
        try:
            yield
        finally:
            self._free.release(slots)


# ---------------------------------------------------------------- time
def expected_seconds(estimate: NodeEstimate) -> float:
    """How long a node takes, well enough to compare it with others."""
    if estimate.wall_hours is not None:
        return 3600 * estimate.wall_hours
    return START_S + 2 * (estimate.parameters or 0) * estimate.tokens / CPU_FLOPS


def seen_seconds(plan: Plan) -> dict[str, float]:
    """Key -> seconds that a missing node should take on CPUs: its tokens by the tokens/s of the
    newest artifact of its name, else of its stage, that this profile has in the store. Nodes
    without one are left out."""
    manifests = {one.ref.key: one for one in plan.store.manifests()} if plan.missing else {}
    newest: dict[str, Manifest] = {}
    for one in sorted(manifests.values(), key=lambda one: one.finished_at):
        if one.profile == plan.profile and one.device == "cpu":
            newest[one.stage] = newest[one.label] = one
    seconds = {}
    for node in plan.missing:
        made = newest.get(node.label) or newest.get(node.stage.name)
        if made and not plan.estimates[node.key].on_gpu:
            tokens = _tokens(made, manifests, plan)
            share = plan.estimates[node.key].tokens / tokens if tokens else 1.0
            seconds[node.key] = made.seconds * share
    return seconds


def _tokens(made: Manifest, manifests: Mapping[str, Manifest], plan: Plan) -> int:
    """The tokens of an artifact, estimated as those of a node are; 0 if this version would make
    another one."""
    with suppress(KeyError, ValueError, RecursionError):  # a damaged store may have a circle
        node = _node_of(made, manifests, {})
        if node.key == made.ref.key:
            return estimates(plan.config, [node], plan.store)[node.key].tokens
    return 0


def _node_of(made: Manifest, manifests: Mapping[str, Manifest], known: dict[str, Node]) -> Node:
    """Return the node of an artifact; `known`: the nodes of its inputs, each made once."""
    if (key := made.ref.key) not in known:
        inputs = {
            name: _node_of(manifests[ref.key], manifests, known)
            for name, ref in made.inputs.items()
        }
        variant = made.label.removeprefix(made.stage).strip("[]")
        config = parse_config(made.stage, made.config)
        known[key] = Node(STAGES[made.stage], config, inputs, variant, made.seed)
    return known[key]


# ---------------------------------------------------------------- budget
class Budget:
    """GPU-hours of one run: spent by finished nodes, and reserved for running ones."""

    def __init__(self, gpu_hours: float, estimates: Mapping[str, NodeEstimate]) -> None:
        self.spent = 0.0
        """GPU-hours of the nodes that have ended."""
        self._limit, self._estimates = gpu_hours, estimates
        self._reserved: dict[str, float] = {}
        """GPU-hours of running nodes, by key."""
        self._lock = threading.Lock()

    def admit(self, key: str) -> str | None:
        """Reserve a node's estimated GPU-hours, or return the reason why it may not start."""
        estimate = self._estimates[key]
        if estimate.gpu_hours is None and estimate.gpus and estimate.on_gpu:
            return "its cost is unknown, so no budget can be kept; run `rlt fetch` first"
        needed = estimate.gpu_hours or 0.0
        with self._lock:
            left = self._limit - self.spent - sum(self._reserved.values())
            if needed > left:
                return (
                    f"it takes about {needed:.3g} GPU-hours; "
                    f"{max(left, 0.0):.3g} of {self._limit:g} are left"
                )
            self._reserved[key] = needed
        return None

    def settle(self, key: str, gpu_seconds: float | None) -> None:
        """Count an ended node: the GPU-seconds of its manifest, or without one its estimate."""
        with self._lock:
            reserved = self._reserved.pop(key)
            self.spent += reserved if gpu_seconds is None else gpu_seconds / 3600
