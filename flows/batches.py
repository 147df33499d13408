"""Nodes that travel together: one run of a stage for many small nodes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rlt_core.graph import Node


@dataclass(frozen=True)
class Batch:
    """Nodes of one stage, none of which reads another of them."""

    nodes: tuple[Node, ...]

    @property
    def name(self) -> str:
        """The node's name, or the stage and how many."""
        if len(self.nodes) == 1:
            return self.nodes[0].name
        return f"{len(self.nodes)} {self.nodes[0].stage.name}"

    @property
    def keys(self) -> list[str]:
        """Keys of the nodes."""
        return [node.key for node in self.nodes]


def one_by_one(nodes: Iterable[Node]) -> list[Batch]:
    """Every node for itself, in the order given (inputs first)."""
    return [Batch((node,)) for node in nodes]


def by_stage(nodes: Iterable[Node], size_of: Callable[[Node], int]) -> list[Batch]:
    """Nodes of one stage that become ready together, at most `size_of(node)` a batch.

    `nodes` come inputs first, and so do the batches. A stage's nodes on one level (the longest way
    from the nodes that are there already) are cut into batches of equal size.
    """
    levels: dict[str, int] = {}
    waiting: dict[tuple[int, str, int], list[Node]] = {}
    for node in nodes:
        above = [levels[parent.key] for parent in node.inputs.values() if parent.key in levels]
        levels[node.key] = 1 + max(above, default=0)
        place = levels[node.key], node.stage.name, size_of(node)
        waiting.setdefault(place, []).append(node)
    return [
        batch
        for place in sorted(waiting, key=lambda place: place[0])
        for batch in _cut(waiting[place], place[2])
    ]


def _cut(nodes: Sequence[Node], size: int) -> list[Batch]:
    parts = -(-len(nodes) // size)
    edges = [len(nodes) * part // parts for part in range(parts + 1)]
    return [Batch(tuple(nodes[low:high])) for low, high in itertools.pairwise(edges)]
