"""Refuse a plan that cannot run: name the number, and the one change that helps most."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from rlt_core.config import Config, StageResources
from rlt_core.errors import UserError
from rlt_core.estimate.host import Machine
from rlt_core.estimate.memory import GIB
from rlt_core.estimate.nodes import (
    Estimator,
    NodeEstimate,
    estimates,
    on_gpu,
    resources_of,
    sequences_per_step,
)
from rlt_core.graph import Node
from rlt_core.stages import STAGES, Stage
from rlt_core.stages.cost import TrainingWork
from rlt_core.store import Store
from rlt_core.training.data_order import micro_batches

Change = Mapping[str, Any]
"""Fields of a stage's resources."""
Found = Mapping[str, NodeEstimate]
"""Node key -> estimate."""
SERVER = "http://HOST:8000"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
MOST_PROCESSES = 8
"""Processes of one machine that a hint proposes at most."""


def require_fit(
    config: Config, nodes: Sequence[Node], store: Store | None = None
) -> dict[str, NodeEstimate]:
    """Return estimates of nodes that are to be computed, by key.

    Raises UserError, one line per stage, if resources contradict each other or a node needs more
    memory than its GPU has. Memory is checked where resources place a stage on a GPU (`on_gpu`).
    """
    estimator = Estimator(config, nodes, store)
    found = {node.key: estimator.estimate(node) for node in nodes}
    problems = [
        contradiction(group, estimator) or _gpu_shortage(group, estimator, found)
        for group in groups_of(config, nodes)
        if group.stage.pool == "gpu"
    ]
    _refuse("this layout cannot run", problems)
    return found


def require_room(
    config: Config,
    nodes: Sequence[Node],
    found: Found,
    store: Store | None = None,
    here: Machine | None = None,
) -> None:
    """Raises UserError if machines as `resources` describe them have too little main memory or
    disk for nodes that are to be computed. What `resources` leave open is not checked, or is read
    from `here`; then a run is refused only for what it certainly needs."""
    here = here or Machine()
    estimator, groups = Estimator(config, nodes, store), groups_of(config, nodes)
    problems = [_memory_shortage(group, estimator, found, here) for group in groups]
    if store and not store.files.is_local:
        problems += [_staging_shortage(group, found, here) for group in groups]
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


@dataclass(frozen=True)
class Group:
    """Nodes of one stage that share resources."""

    name: str
    """In `resources.stages`."""
    nodes: list[Node]
    resources: StageResources

    @property
    def stage(self) -> Stage:
        return self.nodes[0].stage

    def shortage(
        self, found: Found, size: Callable[[NodeEstimate], int], limit: int | None
    ) -> Node | None:
        """The node with the largest size, if that exceeds the limit."""
        node = max(self.nodes, key=lambda node: size(found[node.key]))
        return node if limit is not None and size(found[node.key]) > limit else None


def groups_of(config: Config, nodes: Sequence[Node]) -> list[Group]:
    """Nodes grouped by the name of their resources, in the order of stages."""
    found: dict[str, Group] = {}
    for node in sorted(nodes, key=lambda node: list(STAGES).index(node.stage.name)):
        name = config.resources.name_of(node.stage.name, node.variant)
        found.setdefault(name, Group(name, [], resources_of(config, node))).nodes.append(node)
    return list(found.values())


# ---------------------------------------------------------------- contradictions
def contradiction(
    group: Group, estimator: Estimator, resources: StageResources | None = None
) -> str | None:
    """Why a group cannot run with its resources, or with others, whatever the memory."""
    stage, at = group.stage, f"resources.stages.{group.name}"
    resources = resources or group.resources
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
        for node in group.nodes:
            training = estimator.cost(node).work
            if not isinstance(training, TrainingWork):
                continue
            batch = sequences_per_step(training.recipe)
            try:
                micro_batches(batch, resources.micro_batch_size, world)
            except UserError as error:
                return f"{node.name}: {error}"
    elif stage.tensor_parallel and split > 1:
        if not vllm:
            return (
                f"{stage.name}: tensor_parallel={split} is of the engine vllm; set "
                f"{at}.engine=vllm, or {at}.tensor_parallel=1"
            )
        for node in group.nodes:
            shape = estimator.shapes.of(node)
            if shape and shape.heads % split:
                return (
                    f"{stage.name}: {shape.heads} attention heads of {node.name} cannot be split "
                    f"over tensor_parallel={split} GPUs; set {at}.tensor_parallel"
                )
    return None


def unreachable_servers(config: Config, nodes: Sequence[Node]) -> list[str]:
    """One line for each stage whose vLLM server is named by a loopback address although several
    machines sample from it. A plan needs no host name, a run does."""
    found = []
    for group in groups_of(config, nodes):
        stage, resources = group.stage, group.resources
        server, machines = resources.vllm_server, stage.machines(resources)
        samples = stage.rollouts and resources.engine == "vllm" and server and machines > 1
        if samples and urlsplit(server).hostname in LOOPBACK:
            found.append(
                f"{stage.name}: vllm_server={server} is another place on each of {machines} "
                "machines; name the host that all of them reach: "
                + _options(group.name, {"vllm_server": SERVER})
            )
    return found


# ---------------------------------------------------------------- shortages
def _gpu_shortage(group: Group, estimator: Estimator, found: Found) -> str | None:
    """Say how much GPU memory the largest node of a group needs, with a hint; None if all fit."""
    worst = group.shortage(found, _excess, 0)
    if worst is None:
        return None
    estimate = found[worst.key]
    parts = sorted(estimate.parts.items(), key=lambda part: -part[1])
    held = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts)
    count = "" if len(group.nodes) == 1 else f" (and {len(group.nodes) - 1} more nodes)"
    return (
        f"{worst.name}{count} needs {(estimate.peak_bytes or 0) / GIB:.1f} GiB of a GPU ({held}), "
        f"and may take {(estimate.limit_bytes or 0) / GIB:.1f} of its "
        f"{group.resources.gpu_gib:g}; "
        + (_best(group, estimator, _excess, 0) or "take a GPU with more memory")
    )


def _excess(estimate: NodeEstimate) -> int:
    known = estimate.peak_bytes is not None and estimate.limit_bytes is not None
    return (estimate.peak_bytes or 0) - (estimate.limit_bytes or 0) if known else 0


def _memory_shortage(group: Group, estimator: Estimator, found: Found, here: Machine) -> str | None:
    described = Machine.described(group.resources).memory
    limit = described or here.memory

    def needed(estimate: NodeEstimate) -> int:
        return (estimate.host_bytes or 0) if described else estimate.certain_bytes

    worst = group.shortage(found, needed, limit)
    if worst is None or limit is None:
        return None
    estimate, hint = found[worst.key], None
    if on_gpu(group.resources):
        gathers = estimate.gathering_bytes > (estimate.loading_bytes or 0)
        when = f"while {'the first process gathers what is saved' if gathers else 'models load'}"
    else:
        count = group.stage.processes(group.resources)
        when = "in one process" if count == 1 else f"in {count} processes"
        hint = _best(group, estimator, needed, limit)
    return (
        f"{worst.name} needs {needed(estimate) / GIB:.1f} GiB of a machine's main memory {when}, "
        f"and there are {limit / GIB:.1f}; {hint or 'take a machine with more'}"
    )


def _staging_shortage(group: Group, found: Found, here: Machine) -> str | None:
    """The disk of a machine that computes for a store elsewhere."""
    limit = Machine.described(group.resources).or_else(here).disk
    worst = group.shortage(found, lambda estimate: estimate.staged_bytes, limit)
    if worst is None:
        return None
    return (
        f"{worst.name} needs {short(found[worst.key].staged_bytes)}B on the disk of the machine "
        "that computes it, for copies of its inputs and a checkpoint or artifact on its way to "
        f"the store, and {short(limit or 0)}B are free; let XDG_CACHE_HOME name a folder on a "
        "larger one"
    )


def _disk_shortage(
    config: Config, nodes: Sequence[Node], found: Found, store: Store | None, limit: int
) -> str | None:
    needed, widest = disk_needed(nodes, found)
    if needed <= limit:
        return None
    return (
        f"{len(nodes)} nodes need {short(needed)}B of disk where the store is "
        f"({describe_disk(widest, found[widest.key])}), and {short(limit)}B are free; "
        + (
            _rarer_checkpoints(config, nodes, store, limit)
            or "let --store name a larger disk or s3://bucket/prefix"
        )
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


def disk_needed(nodes: Sequence[Node], found: Found) -> tuple[int, Node]:
    """Bytes in the store when nodes are computed one after the other: all artifacts, and what the
    node with the most temporary files needs for them; and that node."""
    kept = sum(found[node.key].artifact_bytes for node in nodes)
    widest = max(nodes, key=lambda node: found[node.key].temporary_bytes)
    return kept + found[widest.key].temporary_bytes, widest


def describe_disk(node: Node, estimate: NodeEstimate) -> str:
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
    return _options(stage.name, change) if change else "a smaller model or a larger machine"


def _best(
    group: Group, estimator: Estimator, size: Callable[[NodeEstimate], int], limit: int
) -> str | None:
    """The first change with which the largest size is within the limit, else the one that reduces
    it most, in words; None if none does."""
    best, least = None, max(size(estimator.estimate(node)) for node in group.nodes)
    for change in _changes(group.stage, group.resources):
        changed = group.resources.model_copy(update=change)
        if contradiction(group, estimator, changed):
            continue
        needed = max(size(estimator.estimate(node, changed)) for node in group.nodes)
        if needed < least:
            best, least = change, needed
        if needed <= limit:
            break
    return f"it takes less with {_options(group.name, best)}" if best else None


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
    scores = "student" in (stage.inputs or ())
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


def _options(name: str, change: Change) -> str:
    """A change of the resources of this name as command-line options."""
    return " ".join(
        f"--set resources.stages.{name}.{field}="
        + (value if isinstance(value, str) else json.dumps(value))
        for field, value in change.items()
    )
