"""Estimates of nodes: the costs that their stages declare, with models and resources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from rlt_core.config import (
    Config,
    DataConfig,
    GRPOConfig,
    ScoringConfig,
    SFTConfig,
    StageResources,
    TeacherGRPOConfig,
)
from rlt_core.config.inference import ANCHORING_CONTEXTS, UTILITY_QUESTIONS
from rlt_core.data.row_files import count_rows
from rlt_core.estimate import data, memory
from rlt_core.estimate.memory import (
    GIB,
    Memory,
    Parts,
    Trained,
    TrainingFiles,
    on_gpu,
    training_files,
)
from rlt_core.estimate.shapes import Shape, shape_of_base
from rlt_core.estimate.work import ProcessLayout, read_flops, train_flops
from rlt_core.graph import Node
from rlt_core.stages.cost import (
    Cost,
    Questions,
    RequestWork,
    SamplingWork,
    Traces,
    TrainingWork,
)
from rlt_core.store import Store
from rlt_core.training.data_order import micro_batches, total_steps

TRACE_BYTES, SCORE_BYTES, TEXT_BYTES = 4.4, 3.4, 1.4
"""Bytes in a Parquet file of a token of `traces` (text, and ids twice), of a log-prob of `scores`,
of a token of text alone. Measured on 82,000 tokens of English documentation in SmolLM2's
vocabulary, traces of 2,000 tokens, with random log-probs."""
PROCESS = 2 * GIB
"""Main memory of a process with torch, CUDA and the libraries, beside tensors. An assumption."""
NO_FILES = TrainingFiles()
CERTAIN = ("weights", "adapters", "optimizer", "gradients", "reference", "reward student")
"""Parts that a process holds however short its sequences are."""


@dataclass(frozen=True)
class NodeEstimate:
    """Memory, disk, time and tokens of one node."""

    parameters: int | None = None
    """Parameters of the model that computes or is trained; None: no model, or its shape is
    unknown."""
    peak_bytes: int | None = None
    """On one GPU, or in a process's memory where there is none; None: as `parameters`."""
    parts: Parts = field(default_factory=dict)
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
    host_bytes: int | None = None
    """Main memory that a machine certainly needs, even for short sequences; files of models, which
    may be read again, do not count."""
    on_gpu: bool = False
    """Computed on a GPU, by what its stage's resources say."""
    requests: RequestWork | None = None
    """What an LLM is asked for."""

    @property
    def excess_bytes(self) -> int:
        """Bytes of the peak beyond the limit; negative where it fits."""
        known = self.peak_bytes is not None and self.limit_bytes is not None
        return (self.peak_bytes or 0) - (self.limit_bytes or 0) if known else 0

    @property
    def temporary_bytes(self) -> int:
        """Bytes of `disk_bytes` that are deleted when the node is committed."""
        return self.disk_bytes - self.artifact_bytes


def resources_of(config: Config, node: Node) -> StageResources:
    return config.resources.of(node.stage.name, node.variant)


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
    return {node.key: estimator.of(node).estimate() for node in nodes}


class Estimator:
    """The work of nodes of one graph."""

    def __init__(self, config: Config, nodes: Sequence[Node], store: Store | None = None) -> None:
        self.config, self.store = config, store
        self.manifests = store.manifests_of([node.ref for node in nodes]) if store else {}
        self._works: dict[str, NodeWork] = {}

    def of(self, node: Node) -> NodeWork:
        if node.key not in self._works:
            self._works[node.key] = NodeWork(self, node)
        return self._works[node.key]


class NodeWork:
    """The work of one node; as `rlt_core.stages.cost.Inputs`, what it reads and makes."""

    def __init__(self, estimator: Estimator, node: Node) -> None:
        self.node, self._estimator = node, estimator
        self.resources = resources_of(estimator.config, node)
        self.world = node.stage.processes(self.resources) * node.stage.machines(self.resources)
        self._manifest = estimator.manifests.get(node.key)

    def _input(self, name: str) -> NodeWork:
        return self._estimator.of(self.node.inputs[name])

    @cached_property
    def cost(self) -> Cost:
        return self.node.stage.cost(self.node.config, self)

    @cached_property
    def shape(self) -> Shape | None:
        """The shape of the model that the node makes or computes with (of several, the writer's);
        None where there is none, or only a download would tell."""
        if self.node.stage.name == "base-model":
            return shape_of_base(self.node, self._estimator.store)
        base = next((name for name in ("model", "teacher") if name in self.node.inputs), None)
        return self._input(base).shape if base else None

    # ------------------------------------------------------------ data
    @property
    def questions(self) -> Questions:
        return self._input("questions").made_questions

    @property
    def traces(self) -> Traces:
        return self._input("traces").made_traces

    def data_set(self, name: str) -> Questions | None:
        return self._input(name).made_questions if name in self.node.inputs else None

    @property
    def made_questions(self) -> Questions:
        """Questions of a data set, or of a file of traces that brings its own."""
        if isinstance(made := self.cost.makes, Questions):
            return made
        rows, longest = self.made_traces.count, data.LONGEST
        return Questions(
            rows, 0, 0, data.QUESTION, data.SOLUTION, data.TRACE, with_trace=rows, longest=longest
        )  # fmt: skip

    @property
    def made_traces(self) -> Traces:
        """Traces of a node; of one whose stage declares none, as many as it reads."""
        if isinstance(made := self.cost.makes, Traces):
            return made
        return self.written(self.traces if "traces" in self.node.inputs else Traces(0, 0, 0))

    def prepared(self, config: DataConfig) -> Questions:
        if self._manifest is None:
            return data.expected_questions(config, self.node.paths.get(config.source))
        found = self._manifest.metrics
        question, solution, trace = (
            found.get(f"{name}_tokens_p50", 0.0) for name in ("question", "solution", "trace")
        )
        longest = sum(found.get(f"{name}_tokens_p100", 0.0) for name in ("question", "solution"))
        train, validation, test = (int(found[name]) for name in ("train", "validation", "test"))
        return Questions(
            train, validation, test, question, solution, trace,
            with_trace=int(found["with_trace"]), longest=longest,
        )  # fmt: skip

    def written(self, expected: Traces | None = None) -> Traces:
        found = self._manifest.metrics if self._manifest else {}
        if "traces" in found and "mean_tokens" in found:
            count = int(found["traces"])
            return Traces(count, int(found.get("questions", count)), found["mean_tokens"])
        if expected is not None:
            return expected
        rows = count_rows(Path(self.node.paths["source"]))
        return Traces(rows, rows, data.TRACE)

    def completion(self, limit: int) -> float:
        usual = data.OF_GENERATED[2] if self.questions.question < 60 else data.COMPLETION
        return min(usual, limit / 2)

    # ------------------------------------------------------------ the estimate
    def estimate(self) -> NodeEstimate:
        """Return the estimate of the node with its stage's resources."""
        match self.cost.work:
            case TrainingWork(recipe=GRPOConfig() as recipe) as training:
                return self._grpo(training, recipe)
            case TrainingWork(recipe=SFTConfig() as recipe) as training:
                return self._sft(training, recipe)
            case SamplingWork() as sampling:
                return self._sampled(sampling)
            case ScoringConfig() as scoring:
                return self._scored(scoring)
            case RequestWork(tokens=tokens) as requests:
                return self._estimate(tokens, requests=requests)
        return self._estimate(0, self.shape if self.node.stage.model else None)

    def _estimate(
        self, tokens: float, model: Shape | None = None, held: Memory | None = None,
        seconds: float = 0, files: TrainingFiles = NO_FILES, requests: RequestWork | None = None,
    ) -> NodeEstimate:  # fmt: skip
        """Return what follows from the needs of the stage's body and the layout."""
        resources, stage = self.resources, self.node.stage
        size = self._manifest.bytes if self._manifest else round(self._artifact_bytes())
        computes = stage.pool == "gpu" and not self.cost.number_bytes
        gpus = stage.machines(resources) * stage.gpus(resources) if computes else 0
        there, processes = computes and on_gpu(resources), stage.processes(resources)
        known = NodeEstimate(
            parameters=model.parameters if model else None, tokens=round(tokens), gpus=gpus,
            on_gpu=there, artifact_bytes=size, disk_bytes=size, staged_bytes=size,
            requests=requests,
        )  # fmt: skip
        if held is None:
            return known
        hours = seconds / 3600 if there else None
        inputs = sum(self._input(n).model_bytes for n, one in self.node.inputs.items()
                     if one.stage.model)  # fmt: skip
        certain = sum(held.parts.get(name, 0) for name in CERTAIN)
        return replace(
            known,
            peak_bytes=held.peak,
            parts=held.parts,
            limit_bytes=held.limit if there else None,
            gpu_hours=None if hours is None else hours * gpus,
            wall_hours=hours,
            checkpoint_bytes=files.checkpoint,
            disk_bytes=files.disk or size * (2 if stage.shared == "shards" else 1),
            staged_bytes=inputs + max(files.checkpoint, size),
            host_bytes=files.gathered * there + processes * (PROCESS if there else certain),
        )

    @property
    def model_bytes(self) -> int:
        """Bytes of the files of the node's model; 0 for one of unknown shape."""
        number = self.cost.number_bytes
        if isinstance(self.cost.work, TrainingWork):
            number = 2 if self.cost.work.recipe.dtype == "bfloat16" else 4
        return self.shape.parameters * number if self.shape else 0

    def _artifact_bytes(self) -> float:
        match self.cost.makes or self.cost.work:
            case Questions(tokens=tokens) | SamplingWork(tokens=tokens):
                return tokens * TEXT_BYTES
            case Traces(count, _, tokens):
                return count * tokens * TRACE_BYTES
            case ScoringConfig():
                logprobs = 2 * self.traces.tokens + self.questions.solution
                return self.traces.count * logprobs * SCORE_BYTES
        return self.model_bytes if self.node.stage.model else 0

    def _layout(self, dtype: str) -> ProcessLayout:
        return ProcessLayout(self.resources, self.world, dtype)

    def _micro(self, batch: int, longest: int) -> tuple[int, bool]:
        """Tokens of a micro-batch, and whether a step has several; for a batch that cannot be
        shared, the most that they would be."""
        limit = self.resources.micro_batch_size
        share, rest = divmod(batch, self.world)
        size = min(limit, share + 1) if rest else micro_batches(batch, limit, self.world).size
        return size * longest, size < share

    def _sft(self, training: TrainingWork, config: SFTConfig) -> NodeEstimate:
        shape, batch = self.shape, config.batch_size
        steps = total_steps(config, max(training.rows, 1), batch)
        length = min(training.tokens, config.max_tokens)
        tokens = steps * batch * length
        if shape is None:
            return self._estimate(tokens)
        trained = Trained(shape, config, self.resources, self.world)
        moments = trained.step(*self._micro(batch, min(config.max_tokens, shape.positions)))
        held = memory.fullest(moments.values(), self.resources)
        again, layout = self.resources.gradient_checkpointing, self._layout(config.dtype)
        seconds = layout.training_s(train_flops(shape, steps * batch, length, config, again))
        files = training_files(shape, config, steps, self.resources)
        return self._estimate(tokens, shape, held, seconds, files)

    def _grpo(self, training: TrainingWork, config: GRPOConfig) -> NodeEstimate:
        shape, limit = self.shape, config.max_completion_tokens
        prompt = min(training.tokens, config.max_prompt_tokens)
        completion = self.completion(limit)
        steps = total_steps(config, max(training.rows, 1), config.questions_per_step)
        batch, length = sequences_per_step(config), prompt + completion
        teacher = "student" in self.node.inputs
        student = self._input("student").shape if teacher else None
        tokens = steps * batch * length
        if shape is None or (teacher and student is None):
            return self._estimate(tokens, shape)
        most = min(math.ceil(self.questions.longest_prompt), config.max_prompt_tokens)
        longest = min(most + limit, shape.positions)
        held = memory.grpo(
            Trained(shape, config, self.resources, self.world), student, config, longest,
            self._micro(batch, longest),
        )  # fmt: skip
        exact = isinstance(config, TeacherGRPOConfig) and config.teacher_logprobs == "exact"
        passes = (config.beta > 0) + (teacher and exact)
        reading = passes * read_flops(shape, steps * batch, length)
        reading += read_flops(student, steps * batch, length) if student else 0
        layout = self._layout(config.dtype)
        sampling_s = layout.decode_s(shape, batch, prompt, completion, limit)
        seconds = steps * sampling_s + layout.reading_s(reading)
        again = self.resources.gradient_checkpointing
        seconds += layout.training_s(train_flops(shape, steps * batch, length, config, again))
        files = training_files(shape, config, steps, self.resources)
        return self._estimate(tokens, shape, held, seconds, files)

    def _sampled(self, sampling: SamplingWork) -> NodeEstimate:
        config, shape = sampling.config, self.shape
        if shape is None:
            return self._estimate(sampling.tokens)
        layout = self._layout(config.dtype)
        longest = math.ceil(self.questions.longest_prompt) + config.max_tokens
        longest = min(longest, shape.positions)
        held = memory.engine(shape, self.resources, layout.number, longest, config.n)
        asked = [one for one in sampling.asked if one[0]]
        seconds = sum(layout.decode_s(shape, *one, config.max_tokens) for one in asked)
        return self._estimate(sampling.tokens, shape, held, seconds)

    def _scored(self, config: ScoringConfig) -> NodeEstimate:
        inputs, traces = self.node.inputs, self.traces
        student = self._input("student").shape
        teacher = self._input("teacher" if "teacher" in inputs else "student").shape
        length = min(self.questions.teacher_prompt + traces.tokens, config.max_tokens)
        tokens = (1 + ("teacher" in inputs)) * traces.count * length
        if teacher is None or student is None:
            return self._estimate(tokens)
        layout = self._layout(config.dtype)
        longest = min(config.max_tokens, teacher.positions, student.positions)
        reads, offload = memory.scored_tokens(self.resources, longest), self.resources.offload
        number = layout.number
        both = number * (teacher.parameters + student.parameters)
        moments = [
            {
                "weights": number * shape.parameters if offload else both,
                "activations": memory.pass_activations(shape, number, number, reads),
                "logits": memory.scored_logits(self.resources),
            }
            for shape in (student, teacher)
        ]
        flops = sum(read_flops(shape, traces.count, length) for shape in (student, teacher))
        if config.anchoring:
            flops += read_flops(student, ANCHORING_CONTEXTS * traces.count, length)
        if chosen := min(config.utility_questions, traces.questions):
            stepped, recipe = chosen * traces.count / traces.questions, SFTConfig(steps=1)
            held_out = min(UTILITY_QUESTIONS, self.questions.validation)
            flops += train_flops(student, stepped, length, recipe, False)
            flops += read_flops(student, held_out * stepped, length)
            step = Trained(student, recipe, self.resources, 1).step(longest, False)
            beside = {"scoring models": 0 if offload else both}
            moments += [beside | parts for parts in step.values()]
        held = memory.fullest(moments, self.resources)
        return self._estimate(tokens, teacher, held, layout.reading_s(flops))
