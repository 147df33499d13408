"""Nodes and their identities: a key is known before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rlt_core.config import Frozen
from rlt_core.extensions import digest
from rlt_core.stages import Stage
from rlt_core.store import Manifest, Ref, Store

KEY_DIGITS = 16
COMPARED = 50
"""Newest artifacts that a miss is compared with."""


def key_of(stage: Stage, config: Frozen, inputs: Mapping[str, str]) -> str:
    """Return sha256(stage name, stage version, canonical config, keys of the inputs)[:16]; of a
    user's own stage, the source of its body counts as well."""
    content = {
        "stage": stage.name,
        "version": stage.version,
        "config": config.model_dump(mode="json"),
        "inputs": dict(inputs),
    }
    if stage.body:
        content["source"] = digest(stage.body)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:KEY_DIGITS]


@dataclass(frozen=True, eq=False)
class Node:
    """A stage with its config and the nodes that it reads."""

    stage: Stage
    config: Frozen
    inputs: Mapping[str, Node] = field(default_factory=dict)
    variant: str = ""
    """Name among the stage's nodes: `rlt`, `rank-3`."""
    seed: int | None = None
    """The training seed it belongs to; None: shared by all seeds."""
    paths: Mapping[str, str] = field(default_factory=dict)
    """Local files and folders that the config names by content. Not hashed."""

    @cached_property
    def key(self) -> str:
        """The node's identity."""
        return key_of(self.stage, self.config, {name: n.key for name, n in self.inputs.items()})

    @property
    def ref(self) -> Ref:
        """Reference to its artifact."""
        return Ref(kind=self.stage.kind, key=self.key)

    @property
    def label(self) -> str:
        """`stage[variant]`, the same for every seed."""
        return f"{self.stage.name}[{self.variant}]" if self.variant else self.stage.name

    @property
    def name(self) -> str:
        """The label with the seed: unique in a graph."""
        return self.label if self.seed is None else f"{self.label}@{self.seed}"


def upstream(targets: Iterable[Node]) -> list[Node]:
    """Return the targets and all that they read, each once (by key), inputs first."""
    found: dict[str, Node] = {}

    def visit(node: Node) -> None:
        if node.key not in found:
            for parent in node.inputs.values():
                visit(parent)
            found[node.key] = node

    for target in targets:
        visit(target)
    return list(found.values())


@dataclass(frozen=True)
class Planned:
    """A node before a run: in the store already, or to be computed, and why."""

    node: Node
    hit: bool
    changes: tuple[str, ...]
    """For a miss: what differs from the nearest committed artifact of the same stage."""


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flatten(inner, f"{path}.{name}" if path else name)
    else:
        yield path, value


def _changes(node: Node, made: Manifest) -> list[str]:
    """Return the fields and inputs in which a node differs from a committed artifact."""
    old, new = dict(_flatten(made.config)), dict(_flatten(node.config.model_dump(mode="json")))
    changes = [
        f"{name}: {old.get(name, '(absent)')} → {new.get(name, '(absent)')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if made.stage_version != node.stage.version:
        changes.insert(0, f"stage version: {made.stage_version} → {node.stage.version}")
    inputs = {name: parent.key for name, parent in node.inputs.items()}
    were = {name: ref.key for name, ref in made.inputs.items()}
    for name in sorted(inputs.keys() | were.keys()):
        if inputs.get(name) != were.get(name):
            parent = node.inputs[name].name if name in inputs else "(absent)"
            changes.append(
                f"input {name} ({parent}): {were.get(name, '(absent)')} → "
                f"{inputs.get(name, '(absent)')}"
            )
    return changes


def plan(targets: Iterable[Node], store: Store) -> list[Planned]:
    """Return every node that the targets need, hit or miss, and for a miss what changed."""
    nodes = upstream(targets)
    hits = store.manifests_of(node.ref for node in nodes)
    misses = [node for node in nodes if node.key not in hits]
    changes = dict(zip((node.key for node in misses), _nearest(misses, store), strict=True))
    return [Planned(node, node.key in hits, changes.get(node.key, ())) for node in nodes]


def _nearest(misses: list[Node], store: Store) -> list[tuple[str, ...]]:
    """Return how each differs from the nearest artifact of its label and seed, or of its stage."""
    if not misses:
        return []
    committed = sorted(store.manifests(), key=lambda one: one.finished_at, reverse=True)
    by_stage: dict[str, list[Manifest]] = defaultdict(list)
    by_label: dict[tuple[str, int | None], list[Manifest]] = defaultdict(list)
    for one in committed:
        by_stage[one.stage].append(one)
        by_label[one.label, one.seed].append(one)
    nearest: list[tuple[str, ...]] = []
    for node in misses:
        candidates = by_label[node.label, node.seed] or by_stage[node.stage.name]
        changes = [_changes(node, made) for made in candidates[:COMPARED]] or [["new"]]
        fewest = min(changes, key=len)
        nearest.append(tuple(fewest))
    return nearest
