"""What a node takes on so many machines, in seconds: the estimates of `rlt plan`, and beside them
what grows with the machines: starting, talking to each other, and waiting for the longest text."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from rlt_core.config import Config, GRPOConfig, SFTConfig, StageResources
from rlt_core.estimate import Estimator
from rlt_core.estimate.data import Facts
from rlt_core.estimate.memory import GIB
from rlt_core.estimate.shapes import Shape, Shapes
from rlt_core.estimate.work import (
    DECODING,
    READING,
    SEQUENCES,
    Layout,
    decode_s,
    gpu_of,
    read_flops,
)
from rlt_core.graph import Node
from rlt_core.stages import EvaluationStageConfig, TraceGenerationConfig
from rlt_core.training.plan import total_steps

NVLINK, INFINIBAND = 450e9, 50e9
"""Bytes/s that a GPU sends inside a machine and to others: https://resources.nvidia.com/en-us-dgx-systems/ai-enterprise-dgx
(DGX H100: NVLink 900 GB/s both ways together, eight 400 Gb/s adapters)."""
START_S = 45.0
"""Until a run is taken, its process has its imports and its inputs are on the machine; the server's
share was measured with `server_overhead`, the rest is an assumption."""
ENGINE_S = 60.0
"""A vLLM engine loads, compiles and captures graphs. An assumption."""
CPU_S = 30.0
"""A node that computes with no model. An assumption."""
SPREAD = 0.8
"""Standard deviation of the logarithm of a completion's length. An assumption; Bespoke-Stratos-17k
spans from some hundred to 16K tokens and more."""


@dataclass(frozen=True)
class Drawn:
    """Completions to be drawn."""

    count: int
    prompt: float
    tokens: float
    """Of a completion, on average."""
    limit: int


def lengths_of(drawn: Drawn, count: int) -> np.ndarray:
    """Quantiles of a log-normal distribution with the given mean, cut at the limit."""
    from scipy.stats import norm

    quantiles = norm.ppf((np.arange(count) + 0.5) / count)
    texts = drawn.tokens * np.exp(SPREAD * quantiles - SPREAD**2 / 2)
    return np.minimum(texts, drawn.limit).clip(min=1)


def drawing_s(shape: Shape, layout: Layout, drawn: Drawn, count: int) -> float:
    """Seconds of one engine for `count` completions: it refills its batch until none waits, and
    then ends with the longest one."""
    resources, gpu = layout.resources, gpu_of(layout.resources)
    split, number = resources.tensor_parallel, 2
    weights = number * shape.parameters
    room = split * resources.vllm_memory * resources.gpu_gib * GIB - weights
    places = int(max(1, min(SEQUENCES, room / shape.kv_bytes(drawn.prompt + drawn.tokens))))
    bandwidth = split * gpu.bandwidth * DECODING
    cache_s = shape.kv_bytes(drawn.prompt + drawn.tokens / 2) / bandwidth
    token_s = cache_s + read_flops(shape, 1, 1) / (split * gpu.bf16 * READING)
    waiting = list(np.random.default_rng(0).permutation(lengths_of(drawn, count)))
    under_way: list[float] = []
    step, seconds = 0.0, 0.0
    while waiting or under_way:
        while waiting and len(under_way) < places:
            heapq.heappush(under_way, step + waiting.pop())
        end = heapq.heappop(under_way)
        seconds += (end - step) * (weights / bandwidth + (len(under_way) + 1) * token_s)
        step = end
    prefill = read_flops(shape, count, drawn.prompt) / (split * gpu.bf16 * READING)
    return seconds + prefill


class Costs:
    """Of the nodes of one graph."""

    def __init__(self, config: Config, nodes: list[Node]) -> None:
        self._config = config
        self._estimator = Estimator(config, nodes, None)
        self._shapes, self._facts = Shapes(None), Facts(None, nodes)

    def name_of(self, node: Node) -> str:
        """What names the node's layout."""
        return self._config.resources.name_of(node.stage.name, node.variant)

    def resources(self, node: Node, machines: int, shard: int | None = None) -> StageResources:
        """A stage's, on other machines and with shards of other size; each machine has a copy of
        the model where one fits."""
        own = self._config.resources.of(node.stage.name, node.variant)
        laid = own.model_copy(
            update={"machines": machines, "shard_questions": shard or own.shard_questions}
        )
        hybrid = laid.model_copy(update={"sharding": "hybrid"})
        copies = machines > 1 and own.sharding == "fsdp"
        return hybrid if copies and self._estimator.estimate(node, hybrid).fits else laid

    @cache  # noqa: B019 (lives as long as the program)
    def seconds(self, node: Node, machines: int, shard: int | None = None) -> float:
        """Of a node that `machines` share; infinite if they cannot."""
        resources = self.resources(node, machines, shard)
        if node.stage.pool == "cpu" or not self.needs_gpus(node):
            return CPU_S
        if node.stage.shared == "steps":
            return START_S + self._steps(node, resources)
        drawn = self._drawn(node)
        if drawn:
            return START_S + ENGINE_S + self._shards(node, resources, drawn)
        hours = self._estimator.estimate(node, resources).wall_hours
        return START_S + (hours or 0.0) * 3600

    @cache  # noqa: B019
    def needs_gpus(self, node: Node) -> bool:
        """Whether it computes on GPUs."""
        return self._estimator.estimate(node).wall_hours is not None

    def least_machines(self, nodes: Sequence[Node]) -> int:
        """The fewest machines on which every one of a stage's nodes fits."""
        machines = 1
        while not all(
            self._estimator.estimate(node, self.resources(node, machines)).fits for node in nodes
        ):
            machines *= 2
        return machines

    # ------------------------------------------------------------ steps
    def _steps(self, node: Node, resources: StageResources) -> float:
        """Training: whatever takes longer, products or talk."""
        config = getattr(node.config, "sft", None) or node.config.grpo  # type: ignore[attr-defined]
        shape = self._shapes.of(node)
        assert shape is not None
        world = resources.processes * resources.machines
        if isinstance(config, SFTConfig):
            batch, rows = config.batch_size, self._facts.to_learn_from(node).count if (
                node.stage.name == "student-sft"
            ) else self._facts.questions(node.inputs["questions"]).with_trace  # fmt: skip
        else:
            batch = config.questions_per_step * config.group_size
            rows = self._facts.questions(node.inputs["questions"]).train
        if batch % world:
            return math.inf
        per_step = config.questions_per_step if isinstance(config, GRPOConfig) else batch
        steps = total_steps(config, max(rows, 1), per_step)
        micro = batch // world // min(resources.micro_batch_size, batch // world)
        wall = (self._estimator.estimate(node, resources).wall_hours or 0.0) * 3600
        drawing = 0.0
        if isinstance(config, GRPOConfig):
            wall -= steps * self._mean_drawing(node, config, resources)
            drawing = steps * self._rollouts(node, config, resources)
        talk = steps * micro * self._talk(shape, resources)
        return max(wall, talk) + drawing

    def _talk(self, shape: Shape, resources: StageResources) -> float:
        """A micro-batch of FSDP2: weights are gathered in bfloat16 forward and backward, float32
        gradients reduced and scattered (arXiv 2304.11277, section 3); copies on other machines
        add theirs up, each process its share."""
        if resources.sharding == "none" or resources.processes * resources.machines == 1:
            return 0.0
        inside = (2 + 2 + 4) * shape.parameters
        if resources.machines == 1:
            return inside / NVLINK
        if resources.sharding == "fsdp":
            return inside / INFINIBAND
        return inside / NVLINK + 2 * 4 * shape.parameters / resources.processes / INFINIBAND

    def _rollout(self, node: Node, config: GRPOConfig) -> Drawn:
        questions = self._facts.questions(node.inputs["questions"])
        teacher = node.stage.name == "teacher-grpo"
        prompt = questions.teacher_prompt if teacher else questions.student_prompt
        limit = config.max_completion_tokens
        tokens = self._facts.completion(limit, questions)
        return Drawn(config.questions_per_step * config.group_size, prompt, tokens, limit)

    def _mean_drawing(self, node: Node, config: GRPOConfig, resources: StageResources) -> float:
        drawn, layout = self._rollout(node, config), _layout(resources)
        shape = self._shapes.of(node)
        assert shape is not None
        return decode_s(shape, layout, drawn.count, drawn.prompt, drawn.tokens, drawn.limit)

    def _rollouts(self, node: Node, config: GRPOConfig, resources: StageResources) -> float:
        drawn, layout = self._rollout(node, config), _layout(resources)
        shape = self._shapes.of(node)
        assert shape is not None
        return drawing_s(shape, layout, drawn, max(1, drawn.count // layout.world))

    # ------------------------------------------------------------ shards
    def _drawn(self, node: Node) -> list[tuple[Drawn, int]]:
        """Completions of each task, and how many a request."""
        config = node.config
        if isinstance(config, TraceGenerationConfig):
            questions, traces = (
                self._facts.questions(node.inputs["questions"]),
                self._facts.traces(node),
            )
            prompt = questions.teacher_prompt
            drawn = Drawn(traces.count, prompt, traces.tokens, config.sampling.max_tokens)
            return [(drawn, config.sampling.n)]
        if isinstance(config, EvaluationStageConfig):
            questions, sampling = self._facts.questions(node.inputs["questions"]), config.evaluation
            tokens = self._facts.completion(sampling.max_tokens, questions)
            asked = zip(sampling.tasks, self._facts.tested(node), strict=True)
            return [
                (
                    Drawn(count * sampling.samples_of(task), prompt, tokens, sampling.max_tokens),
                    sampling.n,
                )
                for task, (count, prompt) in asked
                if count
            ]
        return []

    def _shards(
        self, node: Node, resources: StageResources, tasks: list[tuple[Drawn, int]]
    ) -> float:
        """The longest of all engines, each with its share of whole shards."""
        shape = self._estimator.drawn_from(node)
        assert shape is not None
        layout = _layout(resources)
        seconds = 0.0
        for drawn, n in tasks:
            questions = drawn.count // n
            shards = math.ceil(questions / resources.shard_questions)
            size = math.ceil(questions / shards) * n
            rounds = math.ceil(shards / layout.world)
            seconds += rounds * drawing_s(shape, layout, drawn, size)
        return seconds


def _layout(resources: StageResources) -> Layout:
    return Layout(resources, resources.processes * resources.machines, half=True)
