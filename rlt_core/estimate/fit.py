"""Refuse a plan that cannot run: name the number, and one change that helps."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from rlt_core.config import Config, StageResources
from rlt_core.environment import LOOPBACK, free_bytes
from rlt_core.errors import UserError
from rlt_core.estimate import data
from rlt_core.estimate.memory import ENGINE, GIB, USABLE
from rlt_core.estimate.nodes import (
    Estimator,
    NodeEstimate,
    NodeWork,
    resources_of,
    sequences_per_step,
)
from rlt_core.estimate.work import DECODING, READING, TRAINING, gpu_of
from rlt_core.graph import Node
from rlt_core.stages import Stage
from rlt_core.stages.cost import TEMPLATE, TrainingWork
from rlt_core.store import Store
from rlt_core.store.files import listed_below
from rlt_core.training.data_order import micro_batches

Found = Mapping[str, NodeEstimate]
"""Node key -> estimate."""
SERVER = "http://HOST:8000"


@dataclass(frozen=True)
class Machine:
    """Bytes that a machine has; None: unknown."""

    memory: int | None = None
    disk: int | None = None
    """Free where the store is, or where files wait for a store elsewhere."""

    @classmethod
    def here(cls, folder: Path, unfinished: Collection[Path]) -> Machine:
        """This machine. What the folders of unfinished nodes hold already on the disk of `folder`
        counts as free."""
        there = sum(
            file.bytes or 0 for each in unfinished for file in listed_below(each, deep=True)
        )
        return cls(_memory(), free_bytes(folder) + there)


def _memory() -> int:
    """Main memory of this machine, or the limit of the container."""
    limit = Path("/sys/fs/cgroup/memory.max")
    total: int = psutil.virtual_memory().total
    text = limit.read_text().strip() if limit.is_file() else "max"
    return total if text == "max" else min(total, int(text))


def require_fit(
    config: Config,
    nodes: Sequence[Node],
    store: Store | None = None,
    here: Machine | None = None,
) -> dict[str, NodeEstimate]:
    """Return estimates of nodes that are to be computed, by key.

    Raises UserError, a line per stage and one for the disk, if resources contradict each other, a
    node needs more memory than its GPU has (where resources place a stage on a GPU, `on_gpu`), or
    machines as `resources` describe them have too little main memory or disk. What `resources`
    leave open is not checked, or is read from `here`.
    """
    estimator, here = Estimator(config, nodes, store), here or Machine()
    problems: dict[str, str] = {}
    found = {node.key: estimator.of(node).estimate() for node in nodes}

    def largest(node: Node) -> tuple[int, int]:
        return found[node.key].excess_bytes, found[node.key].host_bytes or 0

    for node in sorted(nodes, key=largest, reverse=True):
        name, work = _name(config, node), estimator.of(node)
        problem = _contradiction(work, name) or _shortage(work, name, found[node.key], here)
        if problem:
            problems.setdefault(name, problem)
    if nodes and (problem := _disk_shortage(config, nodes, found, store, here)):
        problems["disk"] = problem
    if problems:
        lines = "".join(f"\n  {each}" for each in problems.values())
        raise UserError(f"this layout cannot run:{lines}")
    return found


def require_servers(config: Config, nodes: Iterable[Node]) -> None:
    """Raises UserError where a vLLM server is named by a loopback address although several machines
    sample from it. A plan needs no host name, a run does."""
    for node in nodes:
        stage, resources = node.stage, resources_of(config, node)
        server, machines = resources.vllm_server, node.stage.machines(resources)
        samples = stage.rollouts and resources.engine == "vllm" and server and machines > 1
        if samples and urlsplit(server).hostname in LOOPBACK:
            raise UserError(
                f"{stage.name}: vllm_server={server} is another place on each of {machines} "
                "machines; name the host that all of them reach: "
                + _options(_name(config, node), {"vllm_server": SERVER})
            )


def _name(config: Config, node: Node) -> str:
    """The key in `resources.stages` that a change for this node belongs to."""
    return config.resources.name_of(node.stage.name, node.variant)


def _contradiction(work: NodeWork, name: str) -> str | None:
    """Why a node cannot run with its resources, whatever the memory."""
    node, resources, training = work.node, work.resources, work.cost.work
    stage, at = node.stage, f"resources.stages.{name}"
    split, world = resources.tensor_parallel, work.world
    if stage.shared == "steps" and isinstance(training, TrainingWork):
        sharing = resources.processes if resources.sharding == "hybrid" else world
        if resources.sharding != "none" and sharing == 1:
            return (
                f"{stage.name}: sharding={resources.sharding} shares a model out among processes, "
                f"and there is one; set {at}.processes (a GPU each), or {at}.sharding=none"
            )
        if stage.rollouts and split > 1:
            return (
                f"{stage.name}: tensor_parallel={split}, and a trainer's own engine samples on the "
                f"trainer's GPU; set {at}.tensor_parallel=1 or {at}.vllm_server={SERVER}"
            )
        try:
            micro_batches(sequences_per_step(training.recipe), resources.micro_batch_size, world)
        except UserError as error:
            return f"{node.name}: {error}"
    elif stage.tensor_parallel and split > 1:
        if resources.engine != "vllm":
            return (
                f"{stage.name}: tensor_parallel={split} is of the engine vllm; set "
                f"{at}.engine=vllm, or {at}.tensor_parallel=1"
            )
        if work.shape and work.shape.heads % split:
            return (
                f"{stage.name}: {work.shape.heads} attention heads of {node.name} cannot be "
                f"split over tensor_parallel={split} GPUs; set {at}.tensor_parallel"
            )
    return None


def _shortage(work: NodeWork, name: str, estimate: NodeEstimate, here: Machine) -> str | None:
    """Say how much memory of a GPU or machine a node needs, with a hint; None if it fits."""
    node, resources, host = work.node, work.resources, estimate.host_bytes or 0
    if estimate.excess_bytes > 0:
        parts = sorted(estimate.parts.items(), key=lambda part: -part[1])
        held = ", ".join(f"{part} {size / GIB:.1f}" for part, size in parts)
        return (
            f"{node.name} needs {(estimate.peak_bytes or 0) / GIB:.1f} GiB of a GPU ({held}), and "
            f"may take {(estimate.limit_bytes or 0) / GIB:.1f} of its {resources.gpu_gib:g}; it "
            f"takes less with {hint(node.stage, resources, name, estimate.parts)}"
        )
    memory = resources.host_gib * GIB if resources.host_gib else here.memory
    if memory is not None and host > memory:
        return (
            f"{node.name} needs {host / GIB:.1f} GiB of a machine's main memory, and there are "
            f"{memory / GIB:.1f}; take a machine with more, or fewer resources.processes"
        )
    return None


def _disk_shortage(
    config: Config, nodes: Sequence[Node], found: Found, store: Store | None, here: Machine
) -> str | None:
    """The disk of the store or, for a store elsewhere, of the machine that computes a node."""
    if store is None or store.files.is_local:
        needed, widest = disk_needed(nodes, found)
        given, every = config.resources.disk_gb, config.resources.checkpoint_every_steps
        what = f"{len(nodes)} nodes ({describe_disk(widest, found[widest.key])}) need"
        fix = (
            f"checkpoint less often: --set resources.checkpoint_every_steps={2 * every}, or let "
            "--store name a larger disk or s3://bucket/prefix"
        )
    else:
        widest = max(nodes, key=lambda node: found[node.key].staged_bytes)
        given, needed = resources_of(config, widest).disk_gb, found[widest.key].staged_bytes
        what = f"{widest.name}, its inputs and what it makes need"
        fix = "let XDG_CACHE_HOME name a folder on a larger disk"
    disk = given * 1e9 if given else here.disk
    if disk is None or needed <= disk:
        return None
    return f"{what} {short(needed)}B of disk, and {short(disk)}B are free; {fix}"


def hint(
    stage: Stage,
    resources: StageResources,
    name: str = "",
    parts: Collection[str] = ("activations",),
) -> str:
    """One change with which a stage whose memory these parts fill needs less. `name`: that of its
    resources, if it is not the stage's."""
    vllm_here = stage.tensor_parallel and resources.engine == "vllm"
    change: dict[str, Any] = {"tokens_per_batch": resources.tokens_per_batch // 2}
    if ENGINE in parts and stage.rollouts:
        change = {"engine": "vllm", "vllm_server": SERVER}
    elif "vLLM engine" in parts:
        change = {"vllm_memory": resources.vllm_memory / 2}
    elif "reward student" in parts and not resources.offload:
        change = {"offload": True}
    elif stage.shared == "steps":
        change = {"sharding": "fsdp"}
        if resources.processes == 1 or resources.sharding == "fsdp":
            change["processes"] = 2 * resources.processes
        if "activations" in parts and resources.micro_batch_size > 1:
            change = {"micro_batch_size": resources.micro_batch_size // 2}
        elif "activations" in parts and not resources.gradient_checkpointing:
            change = {"gradient_checkpointing": True}
    elif "student" in (stage.inputs or ()) and not resources.offload:
        change = {"offload": True}
    elif vllm_here:
        change = {"tensor_parallel": 2 * resources.tensor_parallel}
    elif stage.shared is None:
        return "a smaller model or a larger machine"
    return _options(name or stage.name, change)


def _options(name: str, change: Mapping[str, Any]) -> str:
    """A change of the resources of this name as command-line options."""
    return " ".join(
        f"--set resources.stages.{name}.{field}="
        + (value if isinstance(value, str) else json.dumps(value))
        for field, value in change.items()
    )


# ---------------------------------------------------------------- disk
def disk_needed(nodes: Sequence[Node], found: Found) -> tuple[int, Node]:
    """Bytes in the store when nodes are computed one after the other: all artifacts, and what the
    node with the most temporary files needs for them; and that node."""
    kept = sum(found[node.key].artifact_bytes for node in nodes)
    widest = max(nodes, key=lambda node: found[node.key].temporary_bytes)
    return kept + found[widest.key].temporary_bytes, widest


def describe_disk(node: Node, estimate: NodeEstimate) -> str:
    """A node's bytes on disk while it is computed, in words."""
    size = short(estimate.checkpoint_bytes)
    checkpoints = f", checkpoints of {size}B each" if estimate.checkpoint_bytes else ""
    return f"{node.name} {short(estimate.disk_bytes)}B{checkpoints}"


def short(number: float) -> str:
    """Three digits and a prefix."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.3g} "


# ---------------------------------------------------------------- assumptions
def assumptions(config: Config, nodes: Sequence[Node], found: Found) -> Iterator[str]:
    """Yield lines about lengths, throughput, servers, and models of unknown shape."""
    yield (
        f"Assumed until data and traces are in the store: questions of {data.QUESTION} tokens, "
        f"solutions {data.SOLUTION}, the data's own traces {data.TRACE}, what models write "
        f"{data.COMPLETION} or half of the limit; prompts of {data.LONGEST + TEMPLATE} at most."
    )
    layouts = [resources_of(config, node) for node in nodes if found[node.key].on_gpu]
    for card in sorted({gpu_of(layout) for layout in layouts}, key=lambda card: card.gib):
        yield (
            f"{card.name}: {TRAINING:.0%} of {card.bf16 / 1e12:g} bf16 TFLOP/s in training, "
            f"{READING:.0%} in reading, {DECODING:.0%} of {card.bandwidth / 1e12:g} TB/s "
            f"in decoding; {USABLE:.0%} of its memory for tensors."
        )
    servers = {layout.vllm_server for layout in layouts if layout.vllm_server}
    yield from (f"To be started by you: `vllm serve` at {server}" for server in sorted(servers))
    shapeless = (node for node in nodes if found[node.key].gpus)
    if unknown := [node.name for node in shapeless if found[node.key].parameters is None]:
        yield f"Unknown: the shape of the models of {', '.join(unknown)}; run `rlt fetch`."
    if not layouts:
        yield "On a CPU no hours are estimated, and memory is a process's."
