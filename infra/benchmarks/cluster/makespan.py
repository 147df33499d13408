"""The graph of a profile on 8 to 1,024 GPUs: how long it takes, what stands idle, what binds.

`python -m infra.benchmarks.cluster.makespan [PROFILE [EXPERIMENT]]`. A simulation: nodes take what
`costs` says, and start as a run would start them, the longest way to the end first
(`flows.schedule`). Machines of 8 GPUs; a stage that several may share gets more of them as long as
that makes the whole shorter.
"""

from __future__ import annotations

import heapq
import itertools
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from flows.schedule import longest_ways
from infra.benchmarks.cluster.costs import Costs
from rlt_core.experiments import targets
from rlt_core.graph import Node, upstream
from rlt_core.overrides import load_config

GPUS_A_MACHINE = 8
CLUSTERS = (8, 16, 32, 64, 128, 256, 512, 1024)
FACTORS = (2, 4, 8)
"""Steps by which a stage gets more machines: the first beyond one may cost more than it brings."""
SHARDS = (32, 64, 128, 256, 512, 1024, 2048)
BINDING = 0.9
"""Share of the time that the longest way takes, from which on it binds, and no longer the GPUs."""


@dataclass(frozen=True)
class Layout:
    """Machines and seconds of each node, by key."""

    machines: Mapping[str, int]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Course:
    """What a simulated run was like."""

    seconds: float
    machine_seconds: float
    longest_way: float


def simulate(nodes: Sequence[Node], layout: Layout, machines: int) -> Course:
    """List scheduling: whenever something ends, those that are ready begin, the longest way first,
    and nobody overtakes who waits for more machines. What needs none begins at once."""
    ways = longest_ways(nodes, layout.seconds)
    waiting = {node.key: len(node.inputs) for node in nodes}
    readers: dict[str, list[str]] = {}
    for node in nodes:
        for parent in node.inputs.values():
            readers.setdefault(parent.key, []).append(node.key)
    ready: list[tuple[float, str]] = []
    running: list[tuple[float, str]] = []
    free, now = machines, 0.0

    def is_ready(key: str) -> None:
        if layout.machines[key]:
            heapq.heappush(ready, (-ways[key], key))
        else:
            heapq.heappush(running, (now + layout.seconds[key], key))

    for key, count in waiting.items():
        if not count:
            is_ready(key)
    while ready or running:
        while ready and layout.machines[ready[0][1]] <= free:
            _, key = heapq.heappop(ready)
            free -= layout.machines[key]
            heapq.heappush(running, (now + layout.seconds[key], key))
        now, key = heapq.heappop(running)
        free += layout.machines[key]
        for reader in readers.get(key, []):
            waiting[reader] -= 1
            if not waiting[reader]:
                is_ready(reader)
    used = sum(layout.machines[key] * layout.seconds[key] for key in waiting)
    return Course(now, used, max(ways.values()))


def longest_chain(nodes: Sequence[Node], layout: Layout) -> list[Node]:
    """The nodes of the longest way through the graph."""
    ways = longest_ways(nodes, layout.seconds)
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for parent in node.inputs.values():
            readers.setdefault(parent.key, []).append(node)
    chain = [max(nodes, key=lambda node: ways[node.key])]
    while after := readers.get(chain[-1].key):
        chain.append(max(after, key=lambda node: ways[node.key]))
    return chain


class Plan:
    """Layouts of a graph, from the smallest that fit to those that make it shorter."""

    def __init__(self, costs: Costs, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self._costs = costs
        self.least = {kind: costs.least_machines(own) for kind, own in self._kinds().items()}

    def _kinds(self) -> dict[str, list[Node]]:
        """Nodes that share a layout, by what names them in `resources.stages`."""
        kinds: dict[str, list[Node]] = {}
        for node in self.nodes:
            kinds.setdefault(self._costs.name_of(node), []).append(node)
        return kinds

    def layout(self, machines: Mapping[str, int]) -> Layout:
        """Of so many machines a stage."""
        needed = {
            node.key: machines[self._costs.name_of(node)] if self._costs.needs_gpus(node) else 0
            for node in self.nodes
        }
        seconds = {
            node.key: self._costs.seconds(node, machines[self._costs.name_of(node)])
            for node in self.nodes
        }
        return Layout(needed, seconds)

    def best(self, machines: int) -> tuple[dict[str, int], Layout, Course]:
        """More machines for one stage after the other, as long as the whole gets shorter."""
        chosen = dict(self.least)
        layout = self.layout(chosen)
        course = simulate(self.nodes, layout, machines)
        while True:
            tried = []
            for (stage, now), factor in itertools.product(chosen.items(), FACTORS):
                if factor * now <= machines:
                    wider = {**chosen, stage: factor * now}
                    laid = self.layout(wider)
                    if all(seconds < float("inf") for seconds in laid.seconds.values()):
                        tried.append((simulate(self.nodes, laid, machines), stage, wider, laid))
            better = min(tried, key=lambda one: one[0].seconds, default=None)
            if better is None or better[0].seconds >= 0.98 * course.seconds:
                return chosen, layout, course
            course, _, chosen, layout = better


def what_binds(nodes: Sequence[Node], layout: Layout, course: Course) -> str:
    """The machines, or the stages of the longest way, those first that take most of it."""
    if course.longest_way < BINDING * course.seconds:
        return "GPUs"
    shares: defaultdict[str, float] = defaultdict(float)
    for node in longest_chain(nodes, layout):
        shares[node.stage.name] += layout.seconds[node.key] / course.longest_way
    most = sorted(shares.items(), key=lambda each: -each[1])
    return ", ".join(f"{stage} {share:.0%}" for stage, share in most[:3])


def show_clusters(console: Console, plan: Plan) -> None:
    """A row a cluster."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("GPUs", "hours", "GPU-hours", "idle", "longest way", "what binds", "machines"):
        table.add_column(
            column, justify="left" if column in ("what binds", "machines") else "right"
        )
    for gpus in CLUSTERS:
        machines = gpus // GPUS_A_MACHINE
        if machines < max(plan.least.values()):
            table.add_row(str(gpus), "too few")
            continue
        chosen, layout, course = plan.best(machines)
        table.add_row(
            str(gpus), f"{course.seconds / 3600:.1f}",
            f"{course.machine_seconds * GPUS_A_MACHINE / 3600:,.0f}",
            f"{1 - course.machine_seconds / machines / course.seconds:.0%}",
            f"{course.longest_way / 3600:.1f} h", what_binds(plan.nodes, layout, course),
            ", ".join(f"{stage} {count}" for stage, count in chosen.items() if count > 1),
        )  # fmt: skip
    console.print(table)


def show_shards(console: Console, costs: Costs, nodes: Sequence[Node]) -> None:
    """Minutes of the largest generation and evaluation by the questions of a shard."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("minutes of")
    for size in SHARDS:
        table.add_column(f"shards of {size}", justify="right")
    for stage in ("trace-generation", "evaluation"):
        own = [node for node in nodes if node.stage.name == stage]
        if not own:
            continue
        largest = max(own, key=lambda node: costs.seconds(node, 1))
        for machines in (1, 16):
            minutes = [costs.seconds(largest, machines, size) / 60 for size in SHARDS]
            table.add_row(
                f"{largest.name} on {machines * GPUS_A_MACHINE} GPUs",
                *(f"{value:.0f}" for value in minutes),
            )
    console.print(table)


def main(profile: str = "paper-7b", experiment: str = "all") -> None:
    """Print both tables."""
    config = load_config(profile)
    nodes = upstream(targets(experiment, config))
    costs = Costs(config, nodes)
    console = Console(width=180)
    console.print(f"{profile}, {experiment}: {len(nodes)} nodes; a simulation", highlight=False)
    show_clusters(console, Plan(costs, nodes))
    show_shards(console, costs, nodes)


if __name__ == "__main__":
    main(*sys.argv[1:])
