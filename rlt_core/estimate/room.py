"""Main memory and disk that a plan needs of its machines, with hints where they have too little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlt_core.config import Config
from rlt_core.errors import UserError
from rlt_core.estimate.fit import (
    adapters_hint,
    assignments,
    fitting_change,
    laid_out_alike,
    name_of,
)
from rlt_core.estimate.host import Machine
from rlt_core.estimate.memory import GIB
from rlt_core.estimate.nodes import Estimate, Estimator, on_gpu, resources_of
from rlt_core.graph import Node
from rlt_core.store import Store

RARER = [2**n for n in range(1, 20)]
"""Factors between checkpoints that are tried."""


def require_room(
    config: Config,
    nodes: Sequence[Node],
    found: Mapping[str, Estimate],
    store: Store | None = None,
    here: Machine | None = None,
) -> None:
    """Raises UserError, with a hint for each, if the machines that `resources` describe have too
    little main memory or disk for nodes that are to be computed. What `resources` leave open is not
    checked, or is as `here` says, where a run is refused only for what it takes in any case."""
    here = here or Machine()
    estimator = Estimator(config, nodes, store)
    groups = laid_out_alike(config, nodes)
    problems = [_memory(config, estimator, own, found, here) for own in groups]
    if store and not store.files.is_local:
        problems += [_staging(config, own, found, here) for own in groups]
    elif disk := Machine.described(config.resources).or_else(here).disk:
        problems.append(_disk(config, estimator, nodes, found, disk))
    if lines := [each for each in problems if each]:
        raise UserError("there is no room for this:\n" + "\n".join(f"  {each}" for each in lines))


def _memory(
    config: Config,
    estimator: Estimator,
    nodes: Sequence[Node],
    found: Mapping[str, Estimate],
    here: Machine,
) -> str | None:
    resources = resources_of(config, nodes[0])
    described = Machine.described(resources).memory
    limit = described or here.memory

    def needed(estimate: Estimate) -> int:
        return (estimate.host_bytes or 0) if described else estimate.certain_bytes

    worst = max(nodes, key=lambda node: needed(found[node.key]))
    estimate = found[worst.key]
    if limit is None or needed(estimate) <= limit:
        return None
    gathers = estimate.gathering_bytes > (estimate.loading_bytes or 0)
    when = "while the first process gathers what is saved" if gathers else "while models are loaded"
    if not on_gpu(resources):
        count = worst.stage.processes(resources)
        when = "in one process" if count == 1 else f"in {count} processes"
    need = (
        f"{worst.name} needs {needed(estimate) / GIB:.1f} GiB of a machine's main memory {when}, "
        f"and there are {limit / GIB:.1f}"
    )

    def fits(changed: Estimate) -> bool:
        return changed.fits and needed(changed) <= limit

    change = None if on_gpu(resources) else fitting_change(estimator, nodes, resources, fits)
    if change:
        return f"{need}; it fits with {assignments(name_of(config, nodes), change)}"
    other = adapters_hint(config, estimator, nodes, fits)
    return f"{need}; take a machine with more (resources.host_gib){other}"


def _staging(
    config: Config, nodes: Sequence[Node], found: Mapping[str, Estimate], here: Machine
) -> str | None:
    """The disk of a machine that computes for a store elsewhere."""
    limit = Machine.described(resources_of(config, nodes[0])).or_else(here).disk
    worst = max(nodes, key=lambda node: found[node.key].staged_bytes)
    needed = found[worst.key].staged_bytes
    if limit is None or needed <= limit:
        return None
    return (
        f"{worst.name} needs {short(needed)}B on the disk of the machine that computes it, for "
        "copies of its inputs and a checkpoint or artifact on its way to the store, and "
        f"{short(limit)}B are free; let XDG_CACHE_HOME name a folder on a larger one"
    )


def disk_needed(nodes: Sequence[Node], found: Mapping[str, Estimate]) -> tuple[int, Node]:
    """Bytes in the store once all is there, and beside that what the one node needs that leaves
    most behind it while it is computed; that node."""
    kept = sum(found[node.key].artifact_bytes for node in nodes)
    widest = max(nodes, key=lambda node: _work(found[node.key]))
    return kept + _work(found[widest.key]), widest


def _work(estimate: Estimate) -> int:
    """Bytes that go when the node is committed."""
    return estimate.disk_bytes - estimate.artifact_bytes


def said_of_disk(node: Node, estimate: Estimate) -> str:
    """A node's bytes on disk while it is computed, in words."""
    if not estimate.checkpoint_bytes:
        return f"{node.name} {short(estimate.disk_bytes)}B while it is computed"
    size = short(estimate.checkpoint_bytes)
    return f"{node.name} {short(estimate.disk_bytes)}B, checkpoints of {size}B each"


def _disk(
    config: Config,
    estimator: Estimator,
    nodes: Sequence[Node],
    found: Mapping[str, Estimate],
    limit: int,
) -> str | None:
    needed, widest = disk_needed(nodes, found)
    if needed <= limit:
        return None
    fewer = _fewer_checkpoints(config, estimator, nodes, found, limit)
    return (
        f"{len(nodes)} nodes need {short(needed)}B of disk where the store is "
        f"({said_of_disk(widest, found[widest.key])}), and {short(limit)}B are free; "
        f"{fewer}let --store name a larger disk or s3://bucket/prefix"
    )


def _fewer_checkpoints(
    config: Config,
    estimator: Estimator,
    nodes: Sequence[Node],
    found: Mapping[str, Estimate],
    limit: int,
) -> str:
    """The assignments by which trainings leave so few checkpoints that the disk suffices."""
    left = limit - sum(found[node.key].artifact_bytes for node in nodes)
    said = []
    for own in laid_out_alike(config, nodes):
        if max(_work(found[node.key]) for node in own) <= left:
            continue
        resources = resources_of(config, own[0])
        for factor in RARER:
            every = factor * resources.checkpoint_every_steps
            changed = resources.model_copy(update={"checkpoint_every_steps": every})
            if all(_work(estimator.estimate(node, changed)) <= left for node in own):
                change = {"checkpoint_every_steps": every}
                said.append(assignments(name_of(config, own), change))
                break
        else:
            return ""
    return f"checkpoint less often: {' '.join(said)}, or "


def short(number: float) -> str:
    """Three digits and a prefix."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.3g} "
