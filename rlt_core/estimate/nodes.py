"""Estimates of nodes: the costs that their stages declare, with models and resources."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rlt_core.config import Config, GRPOConfig, SFTConfig, StageResources, TeacherGRPOConfig
from rlt_core.config.inference import ANCHORING_CONTEXTS, UTILITY_QUESTIONS
from rlt_core.estimate import host, memory, work
from rlt_core.estimate.data import SizedInputs, Sizes
from rlt_core.estimate.host import TrainingFiles
from rlt_core.estimate.memory import Memory, Rollouts, Trained
from rlt_core.estimate.shapes import Shape, Shapes
from rlt_core.estimate.work import ProcessLayout
from rlt_core.graph import Node
from rlt_core.stages.cost import (
    Cost,
    Questions,
    RequestWork,
    SamplingWork,
    ScoringWork,
    Traces,
    TrainingWork,
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
    requests: RequestWork | None = None
    """What an LLM is asked for."""

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


@dataclass(frozen=True)
class _Need:
    """Needs of a stage's body; the rest of an estimate follows from the layout."""

    parameters: int | None = None
    memory: Memory | None = None
    tokens: float = 0
    seconds: float = 0
    files: TrainingFiles = field(default_factory=TrainingFiles)


def resources_of(config: Config, node: Node) -> StageResources:
    return config.resources.of(node.stage.name, node.variant)


def on_gpu(resources: StageResources) -> bool:
    """Whether a stage is computed on a GPU by what its resources say: `device` is `cuda`, or it is
    `auto` and the engine is vLLM. A GPU that `auto` may find by chance does not count."""
    return resources.device == "cuda" or (resources.device == "auto" and resources.engine == "vllm")


def sequences_per_step(recipe: SFTConfig | GRPOConfig) -> int:
    """Sequences of an optimiser step."""
    if isinstance(recipe, GRPOConfig):
        return recipe.questions_per_step * recipe.group_size
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
        self._sizes = Sizes(store, list(nodes))
        self.shapes = Shapes(store)

    def cost(self, node: Node) -> Cost:
        return self._sizes.cost(node)

    def estimate(self, node: Node, resources: StageResources | None = None) -> NodeEstimate:
        """Return the estimate of one node with its stage's resources, or with others."""
        resources = resources or resources_of(self._config, node)
        stage, need = node.stage, _Body(node, resources, self.shapes, self._sizes).need()
        cost = self.cost(node)
        computes = stage.pool == "gpu" and not cost.number_bytes
        gpus = stage.machines(resources) * stage.gpus(resources) if computes else 0
        there = computes and on_gpu(resources)
        manifest = self._sizes.manifest(node)
        size = manifest.bytes if manifest else round(self._artifact_bytes(node))
        known = NodeEstimate(
            parameters=need.parameters, tokens=round(need.tokens), gpus=gpus, on_gpu=there,
            artifact_bytes=size, disk_bytes=size, staged_bytes=size,
            requests=cost.work if isinstance(cost.work, RequestWork) else None,
        )  # fmt: skip
        if need.memory is None:
            return known
        hours = need.seconds / 3600 if there else None
        # The files of a model are in main memory once: all processes of a machine map them, and a
        # change of number format happens where it computes (`rlt_core.models.load_model`).
        models = {each.key: self._saved(each) for each in node.inputs.values() if each.stage.model}
        loaded, processes = sum(models.values()), stage.processes(resources)
        parts, files, around = need.memory.parts, need.files, processes * host.PROCESS
        certain = sum(held for name, held in parts.items() if name in host.CERTAIN)
        return replace(
            known,
            peak_bytes=need.memory.peak,
            parts=parts,
            limit_bytes=need.memory.limit if there else None,
            gpu_hours=None if hours is None else hours * gpus,
            wall_hours=hours,
            checkpoint_bytes=files.checkpoint,
            disk_bytes=files.disk or size * (2 if stage.shared == "shards" else 1),
            staged_bytes=loaded + max(files.checkpoint, size),
            loading_bytes=loaded + around if there else processes * sum(parts.values()),
            gathering_bytes=files.gathered + around if there else 0,
            certain_bytes=files.gathered if there else processes * certain,
        )

    def _saved(self, node: Node) -> int:
        """Bytes of the files of a node's model; 0 for one of unknown shape."""
        shape, cost = self.shapes.of(node), self.cost(node)
        number = cost.number_bytes
        if isinstance(cost.work, TrainingWork):
            number = 2 if cost.work.recipe.dtype == "bfloat16" else 4
        return shape.parameters * number if shape else 0

    def _artifact_bytes(self, node: Node) -> float:
        cost = self.cost(node)
        match cost.makes or cost.work:
            case Questions(tokens=tokens) | SamplingWork(tokens=tokens):
                return tokens * TEXT_BYTES
            case Traces(count, _, tokens):
                return count * tokens * TRACE_BYTES
            case ScoringWork():
                inputs = SizedInputs(self._sizes, node)
                traces, solution = inputs.traces, inputs.questions.solution
                return traces.count * (2 * traces.tokens + solution) * SCORE_BYTES
        return self._saved(node) if node.stage.model else 0


class _Body:
    """The work of one node with some resources."""

    def __init__(self, node: Node, resources: StageResources, shapes: Shapes, sizes: Sizes) -> None:
        self.node, self.resources, self.shapes = node, resources, shapes
        self.work, self.inputs = sizes.cost(node).work, SizedInputs(sizes, node)
        self.world = node.stage.processes(resources) * node.stage.machines(resources)
        self.device = "cuda" if on_gpu(resources) else "cpu"

    def need(self) -> _Need:
        shape = self.shapes.of(self.node)
        match self.work:
            case TrainingWork(GRPOConfig() as config) as training:
                return self._grpo(training, config, shape)
            case TrainingWork(SFTConfig() as config) as training:
                return self._sft(training, config, shape)
            case SamplingWork() as sampling:
                return self._sampled(sampling, shape)
            case ScoringWork() as scoring:
                return self._scored(scoring)
            case RequestWork(tokens=tokens):
                return _Need(tokens=tokens)
        return _Need(shape.parameters if shape and self.node.stage.model else None)

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
        again = self.resources.gradient_checkpointing
        flops = work.train_flops(shape, sequences, length, config, again)
        seconds = other_s + self._layout(config.dtype).training_s(flops)
        files = host.training_files(shape, config, steps, self.resources)
        return _Need(shape.parameters, held, sequences * length, seconds, files)

    def _sft(self, training: TrainingWork, config: SFTConfig, shape: Shape | None) -> _Need:
        row = min(training.tokens, config.max_tokens)
        steps = total_steps(config, max(training.rows, 1), config.batch_size)
        sequences = steps * config.batch_size
        if shape is None:
            return _Need(tokens=sequences * row)
        trained = Trained(shape, config, self.resources, self.world)
        longest = min(config.max_tokens, shape.positions)
        moments = trained.step(*self._micro(config.batch_size, longest))
        held = memory.fullest(moments, self.resources)
        return self._trained(shape, config, held, steps, sequences, row)

    def _grpo(self, training: TrainingWork, config: GRPOConfig, shape: Shape | None) -> _Need:
        prompt = min(training.tokens, config.max_prompt_tokens)
        limit = config.max_completion_tokens
        completion = self.inputs.completion(limit)
        steps = total_steps(config, max(training.rows, 1), config.questions_per_step)
        batch = sequences_per_step(config)
        rollouts, length = steps * batch, prompt + completion
        teacher = "student" in self.node.inputs
        student = self.shapes.of(self.node.inputs["student"]) if teacher else None
        if shape is None or (teacher and student is None):
            return _Need(shape.parameters if shape else None, tokens=rollouts * length)
        layout = self._layout(config.dtype)
        most = min(math.ceil(self.inputs.questions.longest_prompt), config.max_prompt_tokens)
        longest = min(most + limit, shape.positions)
        held = memory.grpo(
            Trained(shape, config, self.resources, self.world),
            student,
            Rollouts(batch, config.group_size, longest, *self._micro(batch, longest)),
            reference=config.beta > 0 and config.lora is None,
            full_kl=training.full_kl,
            device=self.device,
        )
        read = work.read_flops(shape, rollouts, length)
        reading = read * (config.beta > 0)
        if student is not None:
            reading += work.read_flops(student, rollouts, length)
            if isinstance(config, TeacherGRPOConfig) and config.teacher_logprobs == "exact":
                reading += read
        sampling = steps * work.decode_s(shape, layout, batch, prompt, completion, limit)
        other_s = sampling + layout.reading_s(reading)
        return self._trained(shape, config, held, steps, rollouts, length, other_s)

    def _sampled(self, sampling: SamplingWork, shape: Shape | None) -> _Need:
        if shape is None:
            return _Need(tokens=sampling.tokens)
        config, layout = sampling.config, self._layout(sampling.config.dtype)
        longest = math.ceil(self.inputs.questions.longest_prompt) + config.max_tokens
        longest = min(longest, shape.positions)
        if self.resources.engine == "vllm":
            held = memory.vllm(shape, self.resources, layout.number_bytes, longest)
        else:
            moments = memory.engine(shape, self.resources, layout.number_bytes, longest, config.n)
            held = memory.fullest(moments, self.resources)
        seconds = sum(
            work.decode_s(shape, layout, *asked, config.max_tokens)
            for asked in sampling.asked
            if asked[0]
        )
        return _Need(shape.parameters, held, sampling.tokens, seconds)

    def _scored(self, scoring: ScoringWork) -> _Need:
        inputs = self.node.inputs
        models = [inputs["student"], inputs.get("teacher", inputs["student"])]
        student, teacher = (self.shapes.of(model) for model in models)
        traces, most = self.inputs.traces, scoring.config.max_tokens
        length = min(self.inputs.questions.teacher_prompt + traces.tokens, most)
        tokens = (1 + ("teacher" in inputs)) * traces.count * length
        if teacher is None or student is None:
            return _Need(tokens=tokens)
        layout = self._layout(scoring.config.dtype)
        number = layout.number_bytes
        longest = min(most, teacher.positions, student.positions)
        reads = memory.scored_tokens(self.resources, longest, self.device)
        both = teacher.parameters + student.parameters
        full_kl = scoring.full_kl
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
        if scoring.config.anchoring:
            flops += work.read_flops(student, ANCHORING_CONTEXTS * traces.count, length)
        if chosen := min(scoring.config.utility_questions, traces.questions):
            stepped, recipe = chosen * traces.count / traces.questions, SFTConfig(steps=1)
            held_out = min(UTILITY_QUESTIONS, self.inputs.questions.validation)
            flops += work.train_flops(student, stepped, length, recipe, False)
            flops += work.read_flops(student, held_out * stepped, length)
            step = Trained(student, recipe, self.resources, 1).step(longest, False)
            read = {"scoring": 0 if self.resources.offload else number * both}
            moments |= {f"step on a trace, {name}": {**each, **read} for name, each in step.items()}
        held = memory.fullest(moments, self.resources)
        return _Need(teacher.parameters, held, tokens, layout.reading_s(flops))
