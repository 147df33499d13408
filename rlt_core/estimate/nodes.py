"""What each node of a graph will take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from rlt_core.config import (
    Config,
    GRPOConfig,
    Sampling,
    SFTConfig,
    StageResources,
    TeacherGRPOConfig,
)
from rlt_core.estimate import host, memory, work
from rlt_core.estimate.data import Facts
from rlt_core.estimate.host import Trainings
from rlt_core.estimate.memory import Memory, Trained
from rlt_core.estimate.shapes import Shape, Shapes
from rlt_core.estimate.work import Layout
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
from rlt_core.training.plan import micro_batches, total_steps

TRACE_BYTES, SCORE_BYTES, TEXT_BYTES = 4.4, 3.4, 1.4
"""Of a Parquet file: a token of `traces` (text, and ids twice), a log-prob of `scores`, a token of
text alone. Measured on 82,000 tokens of English documentation in SmolLM2's vocabulary, traces of
2,000 tokens, with random log-probs."""


@dataclass(frozen=True)
class Estimate:
    """What one node will take."""

    parameters: int | None = None
    """Of the model that is computed with or left; None: no model, or one of unknown shape."""
    peak_bytes: int | None = None
    """On one GPU, or in a process's memory where there is none; None: as `parameters`."""
    parts: Mapping[str, int] = field(default_factory=dict)
    """What holds the peak."""
    limit_bytes: int | None = None
    """What the peak may be; None: nothing is computed on a GPU."""
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
    """Main memory of a machine that no shorter sequences, nor fewer files in its cache, spare."""

    on_gpu: bool = False
    """Computed on a GPU, by what its stage's resources say."""

    @property
    def host_bytes(self) -> int | None:
        """Main memory of a machine at most."""
        if self.loading_bytes is None:
            return None
        return max(self.loading_bytes, self.gathering_bytes)

    @property
    def fits(self) -> bool:
        """Whether a GPU has room for it, as far as is known."""
        return self.peak_bytes is None or self.limit_bytes is None or (
            self.peak_bytes <= self.limit_bytes
        )  # fmt: skip


@dataclass(frozen=True)
class _Need:
    """What a stage's body takes; the rest follows from the layout."""

    parameters: int | None = None
    memory: Memory | None = None
    tokens: float = 0
    seconds: float | None = None
    artifact_bytes: float = 0
    training: Trainings = field(default_factory=Trainings)


def resources_of(config: Config, node: Node) -> StageResources:
    """Where a node is computed."""
    return config.resources.of(node.stage.name, node.variant)


def on_gpu(resources: StageResources) -> bool:
    """Whether a stage is computed on a GPU, as far as its resources say: `device` is `cuda`, or it
    is `auto` and the engine is vLLM. What runs on the GPU that may happen to be there is not
    counted."""
    return resources.device == "cuda" or (resources.device == "auto" and resources.engine == "vllm")


def device_of(resources: StageResources) -> str:
    return "cuda" if on_gpu(resources) else "cpu"


def estimates(
    config: Config, nodes: Sequence[Node], store: Store | None = None
) -> dict[str, Estimate]:
    """Node key -> estimate, of all nodes; `store`: what it holds is counted, not assumed."""
    estimator = Estimator(config, nodes, store)
    return {node.key: estimator.estimate(node) for node in nodes}


class Estimator:
    """Estimates nodes of one graph."""

    def __init__(self, config: Config, nodes: Sequence[Node], store: Store | None) -> None:
        self._config = config
        self._shapes = Shapes(store)
        self._facts = Facts(store, list(nodes))

    def estimate(self, node: Node, resources: StageResources | None = None) -> Estimate:
        """Of one node, with its stage's resources or with others."""
        resources = resources or resources_of(self._config, node)
        stage, machines = node.stage, node.stage.machines(resources)
        world = stage.processes(resources) * machines
        need = self._need(node, resources, world)
        manifest = self._facts.manifest(node)
        size = manifest.bytes if manifest else round(need.artifact_bytes)
        there = stage.pool == "gpu" and on_gpu(resources)
        gpus = machines * stage.gpus(resources)
        computes = stage.pool == "gpu" and not _only_copies(node)
        if need.memory is None:
            return Estimate(
                on_gpu=there and computes,
                gpus=gpus if computes else 0,
                parameters=need.parameters,
                tokens=round(need.tokens),
                artifact_bytes=size,
                disk_bytes=size,
                staged_bytes=size,
            )
        hours = need.seconds / 3600 if there and need.seconds is not None else None
        return Estimate(
            on_gpu=there,
            parameters=need.parameters,
            peak_bytes=need.memory.peak,
            parts=need.memory.parts,
            limit_bytes=need.memory.limit if there else None,
            tokens=round(need.tokens),
            gpu_hours=None if hours is None else hours * gpus,
            wall_hours=hours,
            gpus=gpus,
            artifact_bytes=size,
            **host.beside_gpus(
                node, resources, self._shapes, need.training, need.memory.parts, size, there
            ),
        )

    def drawn_from(self, node: Node) -> Shape | None:
        """The shape of the model that writes a node's completions."""
        return self._shapes.of(node.inputs["teacher" if "teacher" in node.inputs else "model"])

    def _need(self, node: Node, resources: StageResources, world: int) -> _Need:
        layout = partial(Layout, resources, world)
        config = node.config
        match config:
            case DatasetPrepConfig():
                return self._questions(node)
            case BaseModelConfig():
                return self._base(node, config, layout)
            case TeacherSFTStageConfig():
                questions = self._facts.questions(node.inputs["questions"])
                row = questions.teacher_prompt + questions.trace
                return self._sft(node, config.sft, questions.with_trace, row, layout)
            case StudentSFTStageConfig():
                questions = self._facts.questions(node.inputs["questions"])
                traces = self._facts.to_learn_from(node)
                row = questions.teacher_prompt + traces.tokens
                return self._sft(node, config.sft, traces.count, row, layout)
            case TeacherGRPOStageConfig():
                return self._grpo(node, config.grpo, layout, config.reward.kl == "full")
            case StudentGRPOStageConfig():
                return self._grpo(node, config.grpo, layout)
            case TraceGenerationConfig():
                return self._generation(node, config, layout)
            case EvaluationStageConfig():
                return self._evaluation(node, config, layout)
            case TraceScoringConfig():
                return self._scoring(node, config, layout)
        if node.stage.kind == "traces":
            traces = self._facts.traces(node)
            return _Need(artifact_bytes=traces.count * traces.tokens * TRACE_BYTES)
        return _Need()

    # ------------------------------------------------------------ data and models
    def _questions(self, node: Node) -> _Need:
        found = self._facts.questions(node)
        texts = found.question + found.solution
        rows = found.train + found.validation + found.test
        tokens = rows * texts + found.with_trace * found.trace
        return _Need(artifact_bytes=tokens * TEXT_BYTES)

    def _base(self, node: Node, config: BaseModelConfig, layout: _Layouts) -> _Need:
        shape, scratch = self._shapes.of(node), config.scratch
        if shape is None or scratch is None:
            known = shape.parameters if shape else None
            return _Need(known, artifact_bytes=2 * (known or 0))
        if not scratch.steps:
            return _Need(shape.parameters, artifact_bytes=4 * shape.parameters)
        sft = SFTConfig(
            steps=scratch.steps, batch_size=scratch.batch_size, max_tokens=scratch.max_positions
        )
        return self._sft(node, sft, 1, scratch.max_positions / 2, layout)

    # ------------------------------------------------------------ training
    def _sft(
        self, node: Node, config: SFTConfig, rows: int, row: float, layouts: _Layouts
    ) -> _Need:
        shape = self._shapes.of(node)
        row = min(row, config.max_tokens)
        steps = total_steps(config, max(rows, 1), config.batch_size)
        sequences = steps * config.batch_size
        if shape is None:
            return _Need(tokens=sequences * row)
        layout = layouts(half=config.dtype == "bfloat16")
        trained = _trained(shape, config, layout)
        longest = min(config.max_tokens, shape.positions)
        moments = trained.step(*_micro(config.batch_size, longest, layout))
        again = layout.resources.gradient_checkpointing
        flops = work.train_flops(shape, sequences, row, config, again)
        return _Need(
            shape.parameters,
            memory.fullest(moments, layout.resources),
            sequences * row,
            layout.training_s(flops),
            _number(config.dtype) * shape.parameters,
            host.training(shape, config, steps, layout.resources),
        )

    def _grpo(
        self, node: Node, config: GRPOConfig, layouts: _Layouts, full_kl: bool = False
    ) -> _Need:
        shape = self._shapes.of(node)
        questions = self._facts.questions(node.inputs["questions"])
        teacher = isinstance(config, TeacherGRPOConfig)
        prompt = questions.teacher_prompt if teacher else questions.student_prompt
        prompt = min(prompt, config.max_prompt_tokens)
        completion = self._facts.completion(config.max_completion_tokens, questions)
        steps = total_steps(config, max(questions.train, 1), config.questions_per_step)
        rollouts = steps * config.questions_per_step * config.group_size
        tokens = rollouts * (prompt + completion)
        student = self._shapes.of(node.inputs["student"]) if teacher else None
        if shape is None or (teacher and student is None):
            return _Need(shape.parameters if shape else None, tokens=tokens)
        layout = layouts(half=config.dtype == "bfloat16")
        most = min(math.ceil(questions.longest_prompt), config.max_prompt_tokens)
        longest = min(most + config.max_completion_tokens, shape.positions)
        engine = _engine_beside(shape, layout, longest)
        moments = _grpo_moments(shape, student, config, layout, longest, engine, full_kl)
        read = partial(work.read_flops, sequences=rollouts, length=prompt + completion)
        reading = read(shape) * (config.beta > 0)
        if student is not None:
            reading += read(shape) + read(student)
        again = layout.resources.gradient_checkpointing
        training = work.train_flops(shape, rollouts, prompt + completion, config, again)
        seconds = work.decode_s(
            shape, layout, rollouts / steps, prompt, completion, config.max_completion_tokens
        )
        return _Need(
            shape.parameters,
            _fuller(memory.fullest(moments, layout.resources), engine),
            tokens,
            steps * seconds + layout.reading_s(reading) + layout.training_s(training),
            _number(config.dtype) * shape.parameters,
            host.training(shape, config, steps, layout.resources),
        )

    # ------------------------------------------------------------ inference
    def _generation(self, node: Node, config: TraceGenerationConfig, layouts: _Layouts) -> _Need:
        questions = self._facts.questions(node.inputs["questions"])
        traces = self._facts.traces(node)
        prompt = questions.teacher_prompt
        if config.context == "student":
            prompt = questions.student_prompt
        need = self._drawn(
            node.inputs["teacher"], config.sampling, config.sampling.dtype,
            [(traces.count, prompt, traces.tokens)], questions.longest_prompt, layouts,
        )  # fmt: skip
        return _with(need, artifact_bytes=traces.count * traces.tokens * TRACE_BYTES)

    def _evaluation(self, node: Node, config: EvaluationStageConfig, layouts: _Layouts) -> _Need:
        sampling = config.evaluation
        questions = self._facts.questions(node.inputs["questions"])
        completion = self._facts.completion(sampling.max_tokens, questions)
        asked = [
            (count * sampling.samples_of(task), prompt, completion)
            for task, (count, prompt) in zip(sampling.tasks, self._facts.tested(node), strict=True)
        ]
        need = self._drawn(
            node.inputs["model"], sampling, sampling.dtype, asked, questions.longest_prompt, layouts
        )
        text = sum(count * (prompt + completion) for count, prompt, _ in asked)
        return _with(need, artifact_bytes=text * TEXT_BYTES)

    def _drawn(
        self,
        model: Node,
        sampling: Sampling,
        dtype: str,
        asked: Sequence[tuple[int, float, float]],
        prompts: float,
        layouts: _Layouts,
    ) -> _Need:
        """`asked`: completions, tokens of their prompts, tokens of themselves; `prompts`: tokens of
        the longest."""
        shape = self._shapes.of(model)
        tokens = sum(count * (prompt + completion) for count, prompt, completion in asked)
        if shape is None:
            return _Need(tokens=tokens)
        layout = layouts(half=dtype == "bfloat16")
        resources = layout.resources
        longest = min(math.ceil(prompts) + sampling.max_tokens, shape.positions)
        if resources.engine == "vllm":
            held = memory.vllm(shape, resources, _number(dtype), longest)
        else:
            moments = memory.engine(shape, resources, _number(dtype), longest, sampling.n)
            held = memory.fullest(moments, resources)
        seconds = sum(
            work.decode_s(shape, layout, count, prompt, completion, sampling.max_tokens)
            for count, prompt, completion in asked
            if count
        )
        return _Need(shape.parameters, held, tokens, seconds)

    def _scoring(self, node: Node, config: TraceScoringConfig, layouts: _Layouts) -> _Need:
        teacher = self._shapes.of(node.inputs["teacher"])
        student = self._shapes.of(node.inputs["student"])
        questions = self._facts.questions(node.inputs["questions"])
        traces = self._facts.traces(node.inputs["traces"])
        length = min(questions.teacher_prompt + traces.tokens, config.scoring.max_tokens)
        tokens = 2 * traces.count * length
        size = traces.count * (2 * traces.tokens + questions.solution) * SCORE_BYTES
        if teacher is None or student is None:
            return _Need(tokens=tokens, artifact_bytes=size)
        layout = layouts(half=config.scoring.dtype == "bfloat16")
        number = _number(config.scoring.dtype)
        longest = min(config.scoring.max_tokens, teacher.positions, student.positions)
        seconds = layout.reading_s(
            work.read_flops(student, traces.count, length)
            + work.read_flops(teacher, traces.count, length)
        )
        moments, device = {}, device_of(layout.resources)
        full_kl = config.reward.kl == "full"
        blocks = {
            "student": memory.head_block(number, device, ranks=True),
            "teacher": memory.head_block(number, device, full_kl=full_kl),
        }
        for name, shape in (("student", student), ("teacher", teacher)):
            reads = memory.scored_tokens(layout.resources, longest, device)
            both = teacher.parameters + student.parameters
            held = shape.parameters if layout.resources.offload else both
            moments[name] = {
                "weights": number * held,
                "activations": memory.pass_activations(shape, number, number, reads),
                "logits": blocks[name],
            }
        held_most = memory.fullest(moments, layout.resources)
        return _Need(teacher.parameters, held_most, tokens, seconds, size)


_Layouts = partial[Layout]


def _with(need: _Need, artifact_bytes: float) -> _Need:
    return _Need(need.parameters, need.memory, need.tokens, need.seconds, artifact_bytes)


def _only_copies(node: Node) -> bool:
    """Whether it is a model from outside."""
    return isinstance(node.config, BaseModelConfig) and node.config.scratch is None


def _number(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else 4


def _trained(shape: Shape, config: SFTConfig | GRPOConfig, layout: Layout) -> Trained:
    return Trained(shape, layout.half, config.lora, layout.resources, layout.world)


def _micro(batch: int, longest: int, layout: Layout) -> tuple[int, bool]:
    """Tokens of a micro-batch, and whether a step has several; of a batch that cannot be shared,
    what they would be at most."""
    limit = layout.resources.micro_batch_size
    share, rest = divmod(batch, layout.world)
    size = min(limit, share + 1) if rest else micro_batches(batch, limit, layout.world).size
    return size * longest, size < share


def _grpo_moments(
    shape: Shape,
    student: Shape | None,
    config: GRPOConfig,
    layout: Layout,
    longest: int,
    engine: Memory | None,
    full_kl: bool,
) -> dict[str, memory.Parts]:
    """Rollouts, scoring and the update of a step; the reference and the reward's student are there
    all the time."""
    resources, number = layout.resources, 2 if layout.half else 4
    trained = _trained(shape, config, layout)
    beside: dict[str, int] = {}
    if config.beta > 0 and config.lora is None:
        beside["reference"] = 4 * shape.parameters // trained.shards
    if student is not None and not resources.offload:
        beside["reward student"] = number * student.parameters
    batch = config.questions_per_step * config.group_size
    moments: dict[str, memory.Parts] = {
        name: {**parts, **beside}
        for name, parts in trained.step(*_micro(batch, longest, layout)).items()
    }
    moments |= {
        name: {**parts, **beside}
        for name, parts in _rollouts(trained, config, layout, longest, engine).items()
    }
    if student is not None:
        device = device_of(resources)
        reads = memory.scored_tokens(resources, longest, device)
        moments["scoring by the teacher"] = {
            **trained.reading(reads),
            **beside,
            "logits": memory.head_block(number, device, full_kl=full_kl),
        }
        whole = trained.gathered(shape.layers) if trained.sharded else 0
        moments["scoring by the student"] = {
            **trained.states(),
            **beside,
            "reward student": number * student.parameters,
            "gathered weights": whole,
            "activations": memory.pass_activations(student, number, number, reads),
            "logits": memory.head_block(number, device),
        }
    return moments


def _engine_beside(shape: Shape, layout: Layout, longest: int) -> Memory | None:
    """The vLLM engine on a trainer's own GPU."""
    resources = layout.resources
    if resources.engine == "transformers" or resources.vllm_server:
        return None
    return memory.vllm(shape, resources, 2 if layout.half else 4, longest)


def _fuller(trainer: Memory, engine: Memory | None) -> Memory:
    """The one that does not fit, if one does not."""
    return engine if engine and trainer.fits and not engine.fits else trainer


def _rollouts(
    trained: Trained, config: GRPOConfig, layout: Layout, longest: int, engine: Memory | None
) -> dict[str, memory.Parts]:
    """A vLLM engine beside the policy, which sleeps between rollouts, or the policy's own cache;
    nothing where a server draws them."""
    resources, number = layout.resources, 2 if layout.half else 4
    if engine:
        return {"rollouts": {**trained.states(), "vLLM engine": engine.peak}}
    if resources.engine == "vllm":
        return {}
    batch = config.questions_per_step * config.group_size
    sequences = min(max(1, resources.tokens_per_batch // longest), -(-batch // layout.world))
    prompts = -(-sequences // config.group_size) * longest
    return {
        "prefill": trained.reading(min(prompts, sequences * longest)),
        "rollouts": {
            **trained.reading(sequences),
            "KV cache": trained.kv_bytes(sequences * longest),
            "logits": memory.drawing(trained.shape, number, sequences),
        },
    }
