"""Estimates of the nodes of a graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rlt_core.config import (
    Config,
    EvaluationConfig,
    GenerationConfig,
    GRPOConfig,
    SFTConfig,
    StageResources,
    TeacherGRPOConfig,
)
from rlt_core.estimate import host, memory, work
from rlt_core.estimate.data import Facts, Questions
from rlt_core.estimate.host import TrainingFiles
from rlt_core.estimate.memory import Memory, Rollouts, Trained
from rlt_core.estimate.shapes import Shape, Shapes
from rlt_core.estimate.work import ProcessLayout
from rlt_core.graph import Node
from rlt_core.stages import (
    BaseModelConfig,
    DatasetPrepConfig,
    EvaluationStageConfig,
    StudentGRPOStageConfig,
    StudentSFTStageConfig,
    TeacherGRPOStageConfig,
    TeacherSFTStageConfig,
    TraceGenerationConfig,
    TraceScoringConfig,
)
from rlt_core.store import Store
from rlt_core.training.data_order import micro_batches, total_steps

TRACE_BYTES, SCORE_BYTES, TEXT_BYTES = 4.4, 3.4, 1.4
"""Bytes in a Parquet file of a token of `traces` (text, and ids twice), of a log-prob of `scores`,
of a token of text alone. Measured on 82,000 tokens of English documentation in SmolLM2's
vocabulary, traces of 2,000 tokens, with random log-probs."""


@dataclass(frozen=True)
class NodeEstimate:
    """Memory, disk, time and tokens of one node."""

    parameters: int | None = None
    """Parameters of the model that computes or is trained; None: no model, or its shape is
    unknown."""
    peak_bytes: int | None = None
    """On one GPU, or in a process's memory where there is none; None: as `parameters`."""
    parts: Mapping[str, int] = field(default_factory=dict)
    """The peak by what holds it."""
    limit_bytes: int | None = None
    """The most that the peak may be; None: nothing is computed on a GPU."""
    tokens: int = 0
    """Read and written."""
    gpu_hours: float | None = None
    """None: not on a GPU, or a model of unknown shape."""
    wall_hours: float | None = None
    gpus: int = 0
    """On all machines."""
    artifact_bytes: int = 0
    checkpoint_bytes: int = 0
    """One checkpoint of a training."""
    disk_bytes: int = 0
    """In the store at most while it is computed: checkpoints or shards, and the artifact."""
    staged_bytes: int = 0
    """On a machine that computes for a store elsewhere: inputs and a checkpoint or the artifact."""
    loading_bytes: int | None = None
    """Main memory of a machine while models load, or all that is used on CPUs."""
    gathering_bytes: int = 0
    """Main memory of the first machine while it gathers a checkpoint or the trained model."""
    certain_bytes: int = 0
    """Main memory that a machine needs even for short sequences and with no file in its cache."""

    on_gpu: bool = False
    """Computed on a GPU, by what its stage's resources say."""

    @property
    def host_bytes(self) -> int | None:
        """Main memory of a machine at most."""
        if self.loading_bytes is None:
            return None
        return max(self.loading_bytes, self.gathering_bytes)

    @property
    def temporary_bytes(self) -> int:
        """Bytes of `disk_bytes` that are deleted when the node is committed."""
        return self.disk_bytes - self.artifact_bytes

    @property
    def fits(self) -> bool:
        """Whether a GPU has enough memory, as far as is known."""
        if self.peak_bytes is None or self.limit_bytes is None:
            return True
        return self.peak_bytes <= self.limit_bytes


@dataclass(frozen=True)
class _Need:
    """Needs of a stage's body; the rest of an estimate follows from the layout."""

    parameters: int | None = None
    memory: Memory | None = None
    tokens: float = 0
    seconds: float = 0
    artifact_bytes: float = 0
    files: TrainingFiles = field(default_factory=TrainingFiles)


def resources_of(config: Config, node: Node) -> StageResources:
    """Resources of a node."""
    return config.resources.of(node.stage.name, node.variant)


def on_gpu(resources: StageResources) -> bool:
    """Whether a stage is computed on a GPU by what its resources say: `device` is `cuda`, or it is
    `auto` and the engine is vLLM. A GPU that `auto` may find by chance does not count."""
    return resources.device == "cuda" or (resources.device == "auto" and resources.engine == "vllm")


def sequences_per_step(node: Node) -> int:
    """Sequences of an optimiser step of a training node."""
    recipe = getattr(node.config, "sft", None) or getattr(node.config, "grpo", None)
    if isinstance(recipe, GRPOConfig):
        return recipe.questions_per_step * recipe.group_size
    assert isinstance(recipe, SFTConfig)
    return recipe.batch_size


def estimates(
    config: Config, nodes: Sequence[Node], store: Store | None = None
) -> dict[str, NodeEstimate]:
    """Node key -> estimate, for all nodes; what `store` holds is counted, not assumed."""
    estimator = Estimator(config, nodes, store)
    return {node.key: estimator.estimate(node) for node in nodes}


class Estimator:
    """Estimates nodes of one graph."""

    def __init__(self, config: Config, nodes: Sequence[Node], store: Store | None) -> None:
        self._config = config
        self._shapes = Shapes(store)
        self._facts = Facts(store, list(nodes))

    def estimate(self, node: Node, resources: StageResources | None = None) -> NodeEstimate:
        """Return the estimate of one node with its stage's resources, or with others."""
        resources = resources or resources_of(self._config, node)
        stage, machines = node.stage, node.stage.machines(resources)
        copies = isinstance(node.config, BaseModelConfig) and node.config.scratch is None
        gpus = machines * stage.gpus(resources) if stage.pool == "gpu" and not copies else 0
        there = gpus > 0 and on_gpu(resources)
        need = _Body(node, resources, self._shapes, self._facts).need()
        manifest = self._facts.manifest(node)
        size = manifest.bytes if manifest else round(need.artifact_bytes)
        known = NodeEstimate(
            parameters=need.parameters, tokens=round(need.tokens), gpus=gpus, on_gpu=there,
            artifact_bytes=size, disk_bytes=size, staged_bytes=size,
        )  # fmt: skip
        if need.memory is None:
            return known
        hours = need.seconds / 3600 if there else None
        return replace(
            known,
            peak_bytes=need.memory.peak,
            parts=need.memory.parts,
            limit_bytes=need.memory.limit if there else None,
            gpu_hours=None if hours is None else hours * gpus,
            wall_hours=hours,
            **host.beside_gpus(
                node, resources, self._shapes, need.files, need.memory.parts, size, there
            ),
        )

    def sampled_model(self, node: Node) -> Shape | None:
        """The shape of the model that writes a node's completions."""
        return sampled_model(node, self._shapes)


def sampled_model(node: Node, shapes: Shapes) -> Shape | None:
    """The shape of the model that writes a node's completions."""
    return shapes.of(node.inputs["teacher" if "teacher" in node.inputs else "model"])


class _Body:
    """The work of one node with some resources."""

    def __init__(self, node: Node, resources: StageResources, shapes: Shapes, facts: Facts) -> None:
        self.node, self.resources, self.shapes, self.facts = node, resources, shapes, facts
        self.world = node.stage.processes(resources) * node.stage.machines(resources)
        self.device = "cuda" if on_gpu(resources) else "cpu"

    def need(self) -> _Need:
        facts = self.facts
        match self.node.config:
            case DatasetPrepConfig():
                found = facts.questions(self.node)
                rows = found.train + found.validation + found.test
                tokens = rows * (found.question + found.solution) + found.with_trace * found.trace
                return _Need(artifact_bytes=tokens * TEXT_BYTES)
            case BaseModelConfig(scratch=scratch):
                if scratch and scratch.steps:
                    most = scratch.max_positions
                    sft = SFTConfig(
                        steps=scratch.steps, batch_size=scratch.batch_size, max_tokens=most
                    )
                    return self._sft(sft, 1, most / 2)
                shape = self.shapes.of(self.node)
                known = shape.parameters if shape else None
                return _Need(known, artifact_bytes=(4 if scratch else 2) * (known or 0))
            case TeacherSFTStageConfig(sft=sft):
                row = self.questions.teacher_prompt + self.questions.trace
                return self._sft(sft, self.questions.with_trace, row)
            case StudentSFTStageConfig(sft=sft):
                traces = facts.to_learn_from(self.node)
                return self._sft(sft, traces.count, self.questions.teacher_prompt + traces.tokens)
            case TeacherGRPOStageConfig(grpo=grpo, reward=reward):
                return self._grpo(grpo, full_kl=reward.kl == "full")
            case StudentGRPOStageConfig(grpo=grpo):
                return self._grpo(grpo)
            case TraceGenerationConfig() as config:
                traces = facts.traces(self.node)
                student = config.context == "student"
                prompt = self.questions.student_prompt if student else self.questions.teacher_prompt
                need = self._sampled(config.sampling, [(traces.count, prompt, traces.tokens)])
                return replace(need, artifact_bytes=traces.count * traces.tokens * TRACE_BYTES)
            case EvaluationStageConfig(evaluation=sampling):
                completion = facts.completion(sampling.max_tokens, self.questions)
                asked = [
                    (count * sampling.samples_of(task), prompt, completion)
                    for task, (count, prompt) in zip(
                        sampling.tasks, facts.tested(self.node), strict=True
                    )
                ]
                return replace(
                    self._sampled(sampling, asked), artifact_bytes=_tokens(asked) * TEXT_BYTES
                )
            case TraceScoringConfig() as config:
                return self._scoring(config)
        if self.node.stage.kind == "traces":
            traces = facts.traces(self.node)
            return _Need(artifact_bytes=traces.count * traces.tokens * TRACE_BYTES)
        return _Need()

    @property
    def questions(self) -> Questions:
        return self.facts.questions(self.node.inputs["questions"])

    def _layout(self, dtype: str) -> ProcessLayout:
        return ProcessLayout(self.resources, self.world, dtype == "bfloat16")

    def _micro(self, batch: int, longest: int) -> tuple[int, bool]:
        """Tokens of a micro-batch, and whether a step has several; for a batch that cannot be
        shared, the most that they would be."""
        limit = self.resources.micro_batch_size
        share, rest = divmod(batch, self.world)
        size = min(limit, share + 1) if rest else micro_batches(batch, limit, self.world).size
        return size * longest, size < share

    def _trained(
        self, shape: Shape, config: SFTConfig | GRPOConfig, held: Memory, steps: int,
        sequences: int, length: float, other_s: float = 0,
    ) -> _Need:  # fmt: skip
        """A training on sequences of this many tokens on average; `other_s`: seconds beside it."""
        layout = self._layout(config.dtype)
        again = self.resources.gradient_checkpointing
        flops = work.train_flops(shape, sequences, length, config, again)
        return _Need(
            shape.parameters,
            held,
            sequences * length,
            other_s + layout.training_s(flops),
            layout.number_bytes * shape.parameters,
            host.training_files(shape, config, steps, self.resources),
        )

    def _sft(self, config: SFTConfig, rows: int, row: float) -> _Need:
        """`row`: tokens of a row, `rows` of them."""
        shape = self.shapes.of(self.node)
        row = min(row, config.max_tokens)
        steps = total_steps(config, max(rows, 1), config.batch_size)
        sequences = steps * config.batch_size
        if shape is None:
            return _Need(tokens=sequences * row)
        trained = Trained(shape, config, self.resources, self.world)
        longest = min(config.max_tokens, shape.positions)
        moments = trained.step(*self._micro(config.batch_size, longest))
        held = memory.fullest(moments, self.resources)
        return self._trained(shape, config, held, steps, sequences, row)

    def _grpo(self, config: GRPOConfig, full_kl: bool = False) -> _Need:
        shape, questions = self.shapes.of(self.node), self.questions
        teacher = isinstance(config, TeacherGRPOConfig)
        prompt = questions.teacher_prompt if teacher else questions.student_prompt
        prompt = min(prompt, config.max_prompt_tokens)
        limit = config.max_completion_tokens
        completion = self.facts.completion(limit, questions)
        steps = total_steps(config, max(questions.train, 1), config.questions_per_step)
        batch = config.questions_per_step * config.group_size
        rollouts, length = steps * batch, prompt + completion
        student = self.shapes.of(self.node.inputs["student"]) if teacher else None
        if shape is None or (teacher and student is None):
            return _Need(shape.parameters if shape else None, tokens=rollouts * length)
        layout = self._layout(config.dtype)
        most = min(math.ceil(questions.longest_prompt), config.max_prompt_tokens)
        longest = min(most + limit, shape.positions)
        held = memory.grpo(
            Trained(shape, config, self.resources, self.world),
            student,
            Rollouts(batch, config.group_size, longest, *self._micro(batch, longest)),
            reference=config.beta > 0 and config.lora is None,
            full_kl=full_kl,
            device=self.device,
        )
        read = work.read_flops(shape, rollouts, length)
        reading = read * (config.beta > 0)
        if student is not None:
            reading += read + work.read_flops(student, rollouts, length)
        sampling = steps * work.decode_s(shape, layout, rollouts / steps, prompt, completion, limit)
        other_s = sampling + layout.reading_s(reading)
        return self._trained(shape, config, held, steps, rollouts, length, other_s)

    def _sampled(
        self, sampling: GenerationConfig | EvaluationConfig,
        asked: Sequence[tuple[int, float, float]],
    ) -> _Need:  # fmt: skip
        """`asked`: completions, tokens of their prompts, tokens of themselves."""
        shape = sampled_model(self.node, self.shapes)
        tokens = _tokens(asked)
        if shape is None:
            return _Need(tokens=tokens)
        layout = self._layout(sampling.dtype)
        longest = math.ceil(self.questions.longest_prompt) + sampling.max_tokens
        longest = min(longest, shape.positions)
        if self.resources.engine == "vllm":
            held = memory.vllm(shape, self.resources, layout.number_bytes, longest)
        else:
            moments = memory.engine(shape, self.resources, layout.number_bytes, longest, sampling.n)
            held = memory.fullest(moments, self.resources)
        seconds = sum(
            work.decode_s(shape, layout, count, prompt, completion, sampling.max_tokens)
            for count, prompt, completion in asked
            if count
        )
        return _Need(shape.parameters, held, tokens, seconds)

    def _scoring(self, config: TraceScoringConfig) -> _Need:
        teacher, student = (self.shapes.of(self.node.inputs[n]) for n in ("teacher", "student"))
        traces, most = self.facts.traces(self.node.inputs["traces"]), config.scoring.max_tokens
        length = min(self.questions.teacher_prompt + traces.tokens, most)
        tokens = 2 * traces.count * length
        size = traces.count * (2 * traces.tokens + self.questions.solution) * SCORE_BYTES
        if teacher is None or student is None:
            return _Need(tokens=tokens, artifact_bytes=size)
        layout = self._layout(config.scoring.dtype)
        number = layout.number_bytes
        longest = min(most, teacher.positions, student.positions)
        reads = memory.scored_tokens(self.resources, longest, self.device)
        full_kl = config.reward.kl == "full"
        both = teacher.parameters + student.parameters
        moments = {
            name: {
                "weights": number * (shape.parameters if self.resources.offload else both),
                "activations": memory.pass_activations(shape, number, number, reads),
                "logits": block,
            }
            for name, shape, block in (
                ("student", student, memory.head_block(number, self.device, ranks=True)),
                ("teacher", teacher, memory.head_block(number, self.device, full_kl=full_kl)),
            )
        }
        flops = sum(work.read_flops(shape, traces.count, length) for shape in (student, teacher))
        held = memory.fullest(moments, self.resources)
        return _Need(teacher.parameters, held, tokens, layout.reading_s(flops), size)


def _tokens(asked: Sequence[tuple[int, float, float]]) -> float:
    return sum(count * (prompt + completion) for count, prompt, completion in asked)
