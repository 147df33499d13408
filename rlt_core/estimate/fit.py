"""Layouts that cannot work are refused before anything runs, with one that can."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any
from urllib.parse import urlsplit

from rlt_core.config import Config, GRPOConfig, LoRA, SFTConfig, StageResources
from rlt_core.errors import UserError
from rlt_core.estimate.memory import GIB
from rlt_core.estimate.nodes import Estimate, Estimator, resources_of
from rlt_core.graph import Node
from rlt_core.stages import STAGES, Stage
from rlt_core.store import Store
from rlt_core.training.plan import micro_batches

Change = Mapping[str, Any]
"""Fields of a stage's resources."""
Fits = Callable[[Estimate], bool]
COUNTS = (2, 4, 8)
TOKENS = (131072, 65536, 32768, 16384, 8192)
SHARES = (0.5, 0.4, 0.3)
"""Of a GPU's memory, for a vLLM engine beside a trainer."""
SERVER = "http://HOST:8000"
"""A `vllm serve` on GPUs of its own."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
RECIPES = {
    "teacher-sft": ("teacher_sft",),
    "teacher-grpo": ("teacher_grpo",),
    "student-sft": ("student_sft", "student_sft_subset"),
    "student-grpo": ("student_grpo",),
}
"""Stage -> the fields of the config that say how it trains."""
RANK = 16
"""Of the adapters that are proposed."""


def require_fit(
    config: Config, nodes: Sequence[Node], store: Store | None = None
) -> dict[str, Estimate]:
    """Estimates of nodes that are to be computed, by key.

    Raises UserError if a stage's layout contradicts itself, or needs more than a GPU has: one line
    a stage, with the assignments that make it fit. Memory is looked at where a stage is computed on
    a GPU by what its resources say (`on_gpu`).
    """
    estimator = Estimator(config, nodes, store)
    found = {node.key: estimator.estimate(node) for node in nodes}
    problems = []
    for own in laid_out_alike(config, nodes):
        resources = resources_of(config, own[0])
        if own[0].stage.pool == "gpu":
            wrong = contradiction(name_of(config, own), estimator, own, resources)
            if wrong is None and not all(found[node.key].fits for node in own):
                wrong = _too_large(config, estimator, own, found)
            problems += [wrong] if wrong else []
    if problems:
        raise UserError("this layout cannot run:\n" + "\n".join(f"  {each}" for each in problems))
    return found


def laid_out_alike(config: Config, nodes: Sequence[Node]) -> list[list[Node]]:
    """Nodes by what names their resources, stages in their order."""
    found: dict[str, list[Node]] = {}
    for node in sorted(nodes, key=lambda node: list(STAGES).index(node.stage.name)):
        found.setdefault(name_of(config, [node]), []).append(node)
    return list(found.values())


def name_of(config: Config, nodes: Sequence[Node]) -> str:
    """What in `resources.stages` names nodes that are laid out alike."""
    return config.resources.name_of(nodes[0].stage.name, nodes[0].variant)


def contradiction(
    name: str, estimator: Estimator, nodes: Sequence[Node], resources: StageResources
) -> str | None:
    """What is wrong with the layout of nodes that `resources.stages.{name}` is for, whatever the
    memory."""
    stage = nodes[0].stage
    at = f"resources.stages.{name}"
    world = stage.processes(resources) * stage.machines(resources)
    if stage.shared == "steps":
        sharing = resources.processes if resources.sharding == "hybrid" else world
        if resources.sharding != "none" and sharing == 1:
            return (
                f"{stage.name}: sharding={resources.sharding} shares a model out among processes, "
                f"and there is one; set {at}.processes (a GPU each), or {at}.sharding=none"
            )
        wrong = _undrawable(at, nodes, resources) if stage.rolls else None
        return wrong or _unshareable(nodes, resources, world)
    if not stage.splits or resources.tensor_parallel == 1:
        return None
    if resources.engine != "vllm":
        return (
            f"{stage.name}: tensor_parallel={resources.tensor_parallel} is of the engine vllm; set "
            f"{at}.engine=vllm, or {at}.tensor_parallel=1"
        )
    for node in nodes:
        shape = estimator.drawn_from(node)
        if shape and shape.heads % resources.tensor_parallel:
            return (
                f"{stage.name}: {shape.heads} attention heads of {node.name} cannot be split over "
                f"tensor_parallel={resources.tensor_parallel} GPUs; set {at}.tensor_parallel"
            )
    return None


def _undrawable(at: str, nodes: Sequence[Node], resources: StageResources) -> str | None:
    """Why rollouts cannot be drawn by what the resources at this place name."""
    stage, server = nodes[0].stage, resources.vllm_server
    if resources.tensor_parallel > 1:
        return (
            f"{stage.name}: tensor_parallel={resources.tensor_parallel} splits an engine over "
            "GPUs, and a trainer's own engine draws on the trainer's GPU; set "
            f"{at}.tensor_parallel=1, and where one GPU is too small for the engine name a "
            f"server: {at}.vllm_server={SERVER}"
        )
    if resources.engine != "vllm":
        return None
    if not server and _draws_ahead(nodes):
        return (
            f"{stage.name}: rollouts_ahead draws while the trainer computes, which a vLLM "
            "engine on the trainer's own GPU cannot; name a server: "
            f"{at}.vllm_server={SERVER}, or set rollouts_ahead=false"
        )
    return None


def unreachable_servers(config: Config, nodes: Sequence[Node]) -> list[str]:
    """One line for each stage whose vLLM server is named by a loopback address although several
    machines sample from it. A plan needs no host name, a run does."""
    found = []
    for own in laid_out_alike(config, nodes):
        stage, resources = own[0].stage, resources_of(config, own[0])
        server, machines = resources.vllm_server, stage.machines(resources)
        samples = stage.rolls and resources.engine == "vllm" and server and machines > 1
        if samples and urlsplit(server).hostname in LOOPBACK:
            found.append(
                f"{stage.name}: vllm_server={server} is another place on each of {machines} "
                "machines; name the host that all of them reach: --set "
                f"resources.stages.{name_of(config, own)}.vllm_server={SERVER}"
            )
    return found


def require_servers(config: Config, nodes: Sequence[Node]) -> None:
    """Raises UserError where `unreachable_servers` finds one."""
    if problems := unreachable_servers(config, nodes):
        raise UserError("\n".join(problems))


def _draws_ahead(nodes: Sequence[Node]) -> bool:
    """Whether completions of one of the nodes are drawn a step ahead."""
    return any(
        getattr(getattr(node.config, "grpo", None), "rollouts_ahead", False) for node in nodes
    )


def _unshareable(nodes: Sequence[Node], resources: StageResources, world: int) -> str | None:
    """Whether a batch of one of the nodes cannot be shared by so many processes."""
    for node in nodes:
        try:
            micro_batches(_batch(node), resources.micro_batch_size, world)
        except UserError as error:
            return f"{node.name}: {error}"
    return None


def _batch(node: Node) -> int:
    """Sequences of a step."""
    recipe = getattr(node.config, "sft", None) or getattr(node.config, "grpo", None)
    if isinstance(recipe, GRPOConfig):
        return recipe.questions_per_step * recipe.group_size
    assert isinstance(recipe, SFTConfig)
    return recipe.batch_size


# ---------------------------------------------------------------- what would fit
def _too_large(
    config: Config, estimator: Estimator, nodes: Sequence[Node], found: Mapping[str, Estimate]
) -> str:
    """What the stage needs, and the assignments with which it fits."""
    resources = resources_of(config, nodes[0])
    worst = max(nodes, key=lambda node: _excess(found[node.key]))
    estimate = found[worst.key]
    assert estimate.peak_bytes is not None and estimate.limit_bytes is not None
    parts = sorted(estimate.parts.items(), key=lambda part: -part[1])
    said = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts)
    count = "" if len(nodes) == 1 else f" (and {len(nodes) - 1} more nodes)"
    need = (
        f"{worst.name}{count} needs {estimate.peak_bytes / GIB:.1f} GiB of a GPU ({said}), and may "
        f"take {estimate.limit_bytes / GIB:.1f} of its {resources.gpu_gib:g}"
    )
    change = fitting_change(estimator, nodes, resources)
    if change is None:
        most = COUNTS[-1]
        need += f"; no layout of up to {most} machines of {most} GPUs that share its batch fits"
    else:
        need += f"; it fits with {assignments(name_of(config, nodes), change)}"
    if change is None or "sharding" in change:
        need += adapters_hint(config, estimator, nodes)
    return need


def _excess(estimate: Estimate) -> int:
    return (estimate.peak_bytes or 0) - (estimate.limit_bytes or 0)


def adapters_hint(
    config: Config,
    estimator: Estimator,
    nodes: Sequence[Node],
    fits: Fits = attrgetter("fits"),
) -> str:
    """The assignments with which all nodes train adapters, if they fit then."""
    if nodes[0].stage.name not in RECIPES:
        return ""
    if not all(fits(estimator.estimate(_with_adapters(node))) for node in nodes):
        return ""
    fields = [name for name in RECIPES[nodes[0].stage.name] if getattr(config, name)]
    said = [f"--set {name}.lora.rank={RANK}" for name in fields]
    synced = [name for name in fields if getattr(getattr(config, name), "reference_sync", None)]
    said += [f"--set {name}.reference_sync=null" for name in synced]
    return f", or, which is another recipe, with adapters: {' '.join(said)}"


def _with_adapters(node: Node) -> Node:
    """The node as it would be with LoRA; such a node is only ever estimated."""
    name = "sft" if hasattr(node.config, "sft") else "grpo"
    recipe = getattr(node.config, name).model_copy(update={"lora": LoRA(rank=RANK)})
    return replace(node, config=node.config.model_copy(update={name: recipe}))


def assignments(name_of_nodes: str, change: Change) -> str:
    """A change as the command line takes it."""
    return " ".join(
        f"--set resources.stages.{name_of_nodes}.{name}="
        + (value if isinstance(value, str) else json.dumps(value))
        for name, value in change.items()
    )


def fitting_change(
    estimator: Estimator,
    nodes: Sequence[Node],
    resources: StageResources,
    enough_for: Fits = attrgetter("fits"),
) -> Change | None:
    """The least change of a stage's resources with which all of its nodes fit; None if none does.

    What costs least time comes first: smaller micro-batches, activations computed twice, a frozen
    model that waits outside, smaller passes, more GPUs, more machines.
    """
    groups = [list(group) for group in _ladder(nodes[0].stage, resources)]

    def fits(options: Sequence[Change]) -> bool:
        changed = resources.model_copy(update=_merged(options))
        if contradiction(nodes[0].stage.name, estimator, nodes, changed):
            return False
        return all(enough_for(estimator.estimate(node, changed)) for node in nodes)

    chosen: list[Change] = [{} for _ in groups]
    enough = False
    for place, group in enumerate(groups):
        for option in group:
            chosen[place] = option
            enough = fits(chosen)
            if enough:
                break
        if enough:
            break
    if not enough:
        return None
    for place, group in enumerate(groups):  # what the later ones have made needless
        for option in ({}, *group):
            if fits([*chosen[:place], option, *chosen[place + 1 :]]):
                chosen[place] = option
                break
    return _merged(chosen)


def smaller_layouts(stage: Stage, resources: StageResources) -> str:
    """What to change where a stage has run out of memory: the two changes that cost least time."""
    alone = {"sharding": "fsdp", "processes": 1}  # nobody to share a model with
    changes = (next((each for each in group if each != alone), None)
               for group in _ladder(stage, resources))  # fmt: skip
    said = [assignments(stage.name, change) for change in changes if change]
    return " or ".join(said[:2]) or "a smaller model; or take a machine with more"


def _merged(options: Sequence[Change]) -> dict[str, Any]:
    return {name: value for option in options for name, value in option.items()}


def _ladder(stage: Stage, resources: StageResources) -> Iterator[Iterator[Change]]:
    """Groups of changes, each from weak to strong, in the order in which they are tried."""
    smaller = ({"tokens_per_batch": n} for n in TOKENS if n < resources.tokens_per_batch)
    if stage.splits:
        if resources.engine == "transformers":
            yield smaller
            return
        yield ({"tensor_parallel": n} for n in COUNTS if n > resources.tensor_parallel)
        return
    if stage.shared == "steps":
        yield ({"micro_batch_size": n} for n in (8, 4, 2, 1) if n < resources.micro_batch_size)
        if not resources.gradient_checkpointing:
            yield iter([{"gradient_checkpointing": True}])
    if stage.name in ("teacher-grpo", "trace-scoring") and not resources.offload:
        yield iter([{"offload": True}])
    if stage.name in ("teacher-grpo", "student-grpo", "trace-scoring"):
        yield smaller
    if stage.rolls and resources.engine == "vllm":
        yield ({"vllm_memory": n} for n in SHARES if n < resources.vllm_memory)
    if stage.shared == "steps":
        most = max(resources.processes, COUNTS[-1])
        counts = [n for n in (resources.processes, *COUNTS) if n >= resources.processes]
        yield ({"sharding": "fsdp", "processes": n} for n in dict.fromkeys(counts))
        yield (
            {"sharding": "fsdp", "processes": most, "machines": n}
            for n in COUNTS
            if n > resources.machines
        )
    if stage.rolls and not resources.vllm_server:
        yield iter([{"engine": "vllm", "vllm_server": SERVER}])
