"""Refuse a plan that cannot run: name the number, and the one change that helps most."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from rlt_core.config import Config, StageResources
from rlt_core.errors import UserError
from rlt_core.estimate.host import Machine
from rlt_core.estimate.memory import GIB
from rlt_core.estimate.nodes import (
    Estimate,
    Estimator,
    estimates,
    on_gpu,
    resources_of,
    sequences_per_step,
)
from rlt_core.graph import Node
from rlt_core.stages import STAGES, Stage
from rlt_core.store import Store
from rlt_core.training.data_order import micro_batches

Change = Mapping[str, Any]
"""Fields of a stage's resources."""
Size = Callable[[Estimate], int]
"""Bytes that a node needs of something."""
SERVER = "http://HOST:8000"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
MOST_PROCESSES = 8
"""Processes of one machine that a hint proposes at most."""


def require_fit(
    config: Config, nodes: Sequence[Node], store: Store | None = None
) -> dict[str, Estimate]:
    """Return estimates of nodes that are to be computed, by key.

    Raises UserError, one line per stage, if resources contradict each other or a node needs more
    memory than its GPU has. Memory is checked where resources place a stage on a GPU (`on_gpu`).
    """
    estimator = Estimator(config, nodes, store)
    found = {node.key: estimator.estimate(node) for node in nodes}
    problems = []
    for group in groups_of(config, nodes):
        if group[0].stage.pool == "gpu":
            problem = contradiction(config, estimator, group, resources_of(config, group[0]))
            problems.append(problem or _gpu_shortage(config, estimator, group, found))
    _refuse("this layout cannot run", problems)
    return found


def require_room(
    config: Config,
    nodes: Sequence[Node],
    found: Mapping[str, Estimate],
    store: Store | None = None,
    here: Machine | None = None,
) -> None:
    """Raises UserError if machines as `resources` describe them have too little main memory or
    disk for nodes that are to be computed. What `resources` leave open is not checked, or is read
    from `here`; then a run is refused only for what it certainly needs."""
    here = here or Machine()
    estimator = Estimator(config, nodes, store)
    groups = groups_of(config, nodes)
    problems = [_memory_shortage(config, estimator, group, found, here) for group in groups]
    if store and not store.files.is_local:
        problems += [_staging_shortage(config, group, found, here) for group in groups]
    elif disk := Machine.described(config.resources).or_else(here).disk:
        problems.append(_disk_shortage(config, nodes, found, store, disk))
    _refuse("there is no room for this", problems)


def require_servers(config: Config, nodes: Sequence[Node]) -> None:
    """Raises UserError where `unreachable_servers` finds one."""
    if problems := unreachable_servers(config, nodes):
        raise UserError("\n".join(problems))


def _refuse(title: str, problems: Iterable[str | None]) -> None:
    if lines := [each for each in problems if each]:
        raise UserError(f"{title}:\n" + "\n".join(f"  {each}" for each in lines))


def groups_of(config: Config, nodes: Sequence[Node]) -> list[list[Node]]:
    """Nodes grouped by the name of their resources, in the order of stages."""
    found: dict[str, list[Node]] = {}
    for node in sorted(nodes, key=lambda node: list(STAGES).index(node.stage.name)):
        found.setdefault(_name_of(config, node), []).append(node)
    return list(found.values())


def _name_of(config: Config, node: Node) -> str:
    """The name of a node's resources in `resources.stages`."""
    return config.resources.name_of(node.stage.name, node.variant)


# ---------------------------------------------------------------- contradictions
def contradiction(
    config: Config, estimator: Estimator, nodes: Sequence[Node], resources: StageResources
) -> str | None:
    """Why nodes of one group cannot run with these resources, whatever the memory."""
    stage, at = nodes[0].stage, f"resources.stages.{_name_of(config, nodes[0])}"
    split, vllm = resources.tensor_parallel, resources.engine == "vllm"
    if stage.shared == "steps":
        world = stage.processes(resources) * stage.machines(resources)
        sharing = resources.processes if resources.sharding == "hybrid" else world
        if resources.sharding != "none" and sharing == 1:
            return (
                f"{stage.name}: sharding={resources.sharding} shares a model out among processes, "
                f"and there is one; set {at}.processes (a GPU each), or {at}.sharding=none"
            )
        if stage.rollouts and split > 1:
            return (
                f"{stage.name}: tensor_parallel={split} splits an engine over GPUs, and a "
                "trainer's own engine samples on the trainer's GPU; set "
                f"{at}.tensor_parallel=1, and where one GPU is too small for the engine name a "
                f"server: {at}.vllm_server={SERVER}"
            )
        for node in nodes:
            try:
                micro_batches(sequences_per_step(node), resources.micro_batch_size, world)
            except UserError as error:
                return f"{node.name}: {error}"
    elif stage.tensor_parallel and split > 1:
        if not vllm:
            return (
                f"{stage.name}: tensor_parallel={split} is of the engine vllm; set "
                f"{at}.engine=vllm, or {at}.tensor_parallel=1"
            )
        for node in nodes:
            shape = estimator.drawn_from(node)
            if shape and shape.heads % split:
                return (
                    f"{stage.name}: {shape.heads} attention heads of {node.name} cannot be split "
                    f"over tensor_parallel={split} GPUs; set {at}.tensor_parallel"
                )
    return None


def _grpo_of(node: Node) -> Any:
    return getattr(node.config, "grpo", None)


def unreachable_servers(config: Config, nodes: Sequence[Node]) -> list[str]:
    """One line for each stage whose vLLM server is named by a loopback address although several
    machines sample from it. A plan needs no host name, a run does."""
    found = []
    for group in groups_of(config, nodes):
        stage, resources = group[0].stage, resources_of(config, group[0])
        server, machines = resources.vllm_server, stage.machines(resources)
        samples = stage.rollouts and resources.engine == "vllm" and server and machines > 1
        if samples and urlsplit(server).hostname in LOOPBACK:
            found.append(
                f"{stage.name}: vllm_server={server} is another place on each of {machines} "
                "machines; name the host that all of them reach: "
                + _assignments(_name_of(config, group[0]), {"vllm_server": SERVER})
            )
    return found


# ---------------------------------------------------------------- shortages
def _gpu_shortage(
    config: Config, estimator: Estimator, nodes: Sequence[Node], found: Mapping[str, Estimate]
) -> str | None:
    """What the largest node of a group needs of a GPU, with a hint; None if all nodes fit."""
    worst = max(nodes, key=lambda node: _excess(found[node.key]))
    estimate, resources = found[worst.key], resources_of(config, worst)
    if estimate.fits:
        return None
    assert estimate.peak_bytes is not None and estimate.limit_bytes is not None
    parts = sorted(estimate.parts.items(), key=lambda part: -part[1])
    said = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts)
    count = "" if len(nodes) == 1 else f" (and {len(nodes) - 1} more nodes)"
    change = _best(config, estimator, nodes, _changes(worst.stage, resources), _excess, 0)
    return (
        f"{worst.name}{count} needs {estimate.peak_bytes / GIB:.1f} GiB of a GPU ({said}), and may "
        f"take {estimate.limit_bytes / GIB:.1f} of its {resources.gpu_gib:g}; "
        + (f"it takes less with {change}" if change else "take a GPU with more memory")
    )


def _excess(estimate: Estimate) -> int:
    return (estimate.peak_bytes or 0) - (estimate.limit_bytes or 0)


def _memory_shortage(
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
    if on_gpu(resources):
        gathers = estimate.gathering_bytes > (estimate.loading_bytes or 0)
        when = f"while {'the first process gathers what is saved' if gathers else 'models load'}"
        change = None
    else:
        count = worst.stage.processes(resources)
        when = "in one process" if count == 1 else f"in {count} processes"
        changes = _changes(worst.stage, resources)
        change = _best(config, estimator, nodes, changes, needed, limit)
    return (
        f"{worst.name} needs {needed(estimate) / GIB:.1f} GiB of a machine's main memory {when}, "
        f"and there are {limit / GIB:.1f}; "
        + (f"it takes less with {change}" if change else "take a machine with more")
    )


def _staging_shortage(
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


def _disk_shortage(
    config: Config,
    nodes: Sequence[Node],
    found: Mapping[str, Estimate],
    store: Store | None,
    limit: int,
) -> str | None:
    needed, widest = disk_needed(nodes, found)
    if needed <= limit:
        return None
    change = _rarer_checkpoints(config, nodes, store, limit)
    return (
        f"{len(nodes)} nodes need {short(needed)}B of disk where the store is "
        f"({said_of_disk(widest, found[widest.key])}), and {short(limit)}B are free; "
        + (change or "let --store name a larger disk or s3://bucket/prefix")
    )


def _rarer_checkpoints(
    config: Config, nodes: Sequence[Node], store: Store | None, limit: int
) -> str | None:
    """The fewest steps between checkpoints, doubling, with which the disk suffices."""
    for factor in (2**n for n in range(1, 20)):
        every = factor * config.resources.checkpoint_every_steps
        resources = config.resources.model_copy(update={"checkpoint_every_steps": every})
        changed = config.model_copy(update={"resources": resources})
        if disk_needed(nodes, estimates(changed, nodes, store))[0] <= limit:
            return f"checkpoint less often: --set resources.checkpoint_every_steps={every}"
    return None


def disk_needed(nodes: Sequence[Node], found: Mapping[str, Estimate]) -> tuple[int, Node]:
    """Bytes in the store when nodes are computed one after the other: all artifacts, and what the
    node with the most temporary files needs for them; and that node."""
    kept = sum(found[node.key].artifact_bytes for node in nodes)
    widest = max(nodes, key=lambda node: found[node.key].temporary_bytes)
    return kept + found[widest.key].temporary_bytes, widest


def said_of_disk(node: Node, estimate: Estimate) -> str:
    """A node's bytes on disk while it is computed, in words."""
    if not estimate.checkpoint_bytes:
        return f"{node.name} {short(estimate.disk_bytes)}B while it is computed"
    size = short(estimate.checkpoint_bytes)
    return f"{node.name} {short(estimate.disk_bytes)}B, checkpoints of {size}B each"


def short(number: float) -> str:
    """Three digits and a prefix."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.3g} "


# ---------------------------------------------------------------- hints
def hint(stage: Stage, resources: StageResources) -> str:
    """The first change to try where a stage has run out of memory."""
    change = next(_changes(stage, resources), None)
    return _assignments(stage.name, change) if change else "a smaller model or a larger machine"


def _best(
    config: Config,
    estimator: Estimator,
    nodes: Sequence[Node],
    changes: Iterable[Change],
    size: Size,
    limit: int,
) -> str | None:
    """The first change with which the largest size is within the limit, else the one that reduces
    it most; None if none does."""
    resources = resources_of(config, nodes[0])
    best, least = None, max(size(estimator.estimate(node)) for node in nodes)
    for change in changes:
        changed = resources.model_copy(update=change)
        if contradiction(config, estimator, nodes, changed):
            continue
        needed = max(size(estimator.estimate(node, changed)) for node in nodes)
        if needed < least:
            best, least = change, needed
        if needed <= limit:
            break
    return _assignments(_name_of(config, nodes[0]), best) if best else None


def _changes(stage: Stage, resources: StageResources) -> Iterator[Change]:
    """Changes with which a stage needs less memory, those that cost least time first."""
    tokens = (
        {"tokens_per_batch": n}
        for n in (65536, 32768, 16384, 8192)
        if n < resources.tokens_per_batch
    )
    if stage.tensor_parallel:
        split = ({"tensor_parallel": n} for n in (2, 4, 8) if n > resources.tensor_parallel)
        yield from split if resources.engine == "vllm" else tokens
        return
    steps = stage.shared == "steps"
    scores = stage.name in ("teacher-grpo", "trace-scoring")
    if steps:
        yield from ({"micro_batch_size": n} for n in (8, 4, 2, 1) if n < resources.micro_batch_size)
        if not resources.gradient_checkpointing:
            yield {"gradient_checkpointing": True}
    if scores and not resources.offload:
        yield {"offload": True}
    if scores or stage.rollouts:
        yield from tokens
    if stage.rollouts and resources.engine == "vllm":
        yield from ({"vllm_memory": n} for n in (0.5, 0.4, 0.3) if n < resources.vllm_memory)
    if steps:
        processes = resources.processes
        if processes > 1 and resources.sharding != "fsdp":
            yield {"sharding": "fsdp"}
        yield from (
            {"sharding": "fsdp", "processes": n} for n in (2, 4, MOST_PROCESSES) if n > processes
        )
        yield {"sharding": "fsdp", "machines": 2 * resources.machines}
    if stage.rollouts and not resources.vllm_server:
        yield {"engine": "vllm", "vllm_server": SERVER}


def _assignments(name: str, change: Change) -> str:
    """A change as command-line options; `name`: of the resources."""
    return " ".join(
        f"--set resources.stages.{name}.{field}="
        + (value if isinstance(value, str) else json.dumps(value))
        for field, value in change.items()
    )
