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
from rlt_core.errors import UserError
from rlt_core.extensions import digest
from rlt_core.stages import Stage
from rlt_core.store import Manifest, Ref, Store

KEY_DIGITS = 16
INPUT = "input "
"""Begins a change that is one of an input's key; NEW is that of a node without a predecessor."""
NEW = "new"
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


def by_name(nodes: Iterable[Node]) -> dict[str, Node]:
    """Return nodes by name. Raises UserError where two share one, or a label of which only one has
    a seed: references, tables and reports could not tell them apart."""
    found: dict[str, Node] = {}
    seeded: dict[str, bool] = {}
    for node in nodes:
        other = found.setdefault(node.name, node)
        mixed = seeded.setdefault(node.label, node.seed is not None) != (node.seed is not None)
        if mixed or other.key != node.key:
            raise UserError(
                f"two nodes would be named {node.label!r}: give one of them another name (in "
                "imports, trace_sources, teacher_bench, trace_refinement.name or "
                "endpoint_teacher.name)"
            )
    return found


@dataclass(frozen=True)
class Planned:
    """A node before a run: in the store already, or to be computed, and why."""

    node: Node
    hit: bool
    changes: tuple[str, ...] = ()
    """For a miss: what differs from the nearest artifact of its name in this profile; `NEW` if
    there is none."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is computed: changed fields, else other inputs."""
        return tuple(one for one in self.changes if not one.startswith(INPUT)) or self.changes


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a config as (`a.b.c`, value)."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from flatten(inner, f"{path}.{name}" if path else name)
    else:
        yield path, value


def _said(values: Mapping[str, Any], name: str) -> str:
    """Return a field's value as a config file has it."""
    if name not in values:
        return "(absent)"
    value = values[name]
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _changes(node: Node, made: Manifest) -> list[str]:
    """Return the fields and inputs in which a node differs from a committed artifact."""
    old, new = dict(flatten(made.config)), dict(flatten(node.config.model_dump(mode="json")))
    changes = [
        f"{name}: {_said(old, name)} → {_said(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if made.stage_version != node.stage.version:
        changes.insert(0, f"stage version: {made.stage_version} → {node.stage.version}")
    inputs = {name: parent.key for name, parent in node.inputs.items()}
    were = {name: ref.key for name, ref in made.inputs.items()}
    for name in sorted(inputs.keys() | were.keys()):
        if inputs.get(name) != were.get(name):
            parent = f" ({node.inputs[name].name})" if name in inputs else ""
            changes.append(f"{INPUT}{name}{parent}: {_said(were, name)} → {_said(inputs, name)}")
    return changes


def plan(targets: Iterable[Node], store: Store, profile: str) -> list[Planned]:
    """Return every node that the targets need, hit or miss, and for a miss what changed since the
    profile's artifacts of its name."""
    nodes = upstream(targets)
    hits = store.manifests_of(node.ref for node in nodes)
    made: dict[tuple[str, int | None], list[Manifest]] = defaultdict(list)
    if len(hits) < len(nodes):
        for one in sorted(store.manifests(), key=lambda one: one.finished_at, reverse=True):
            if one.profile == profile:
                made[one.label, one.seed].append(one)

    def planned(node: Node) -> Planned:
        if node.key in hits:
            return Planned(node, True)
        compared = made[node.label, node.seed][:COMPARED]
        found = sorted((_changes(node, one) for one in compared), key=len) or [[NEW]]
        return Planned(node, False, tuple(found[0]))

    return list(map(planned, nodes))


def followers_of(misses: Iterable[Planned]) -> dict[str, list[Planned]]:
    """Key -> nodes that are computed only because they read this one, directly or not; of every
    node that has a reason of its own. `misses`: the nodes to compute, inputs first."""
    cause: dict[str, str] = {}
    found: dict[str, list[Planned]] = {}
    for item in misses:
        key = item.node.key
        reads = [cause[node.key] for node in item.node.inputs.values() if node.key in cause]
        if reads and all(one == NEW or one.startswith(INPUT) for one in item.reasons):
            cause[key] = reads[0]
            found[reads[0]].append(item)
        else:
            cause[key], found[key] = key, []
    return found
