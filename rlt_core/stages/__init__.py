"""The stages: kinds of work, each with its version, what it is configured by and what it leaves.

A stage's version is raised by hand when its output would change for the same config; a test holds
a digest of each stage's sources (`SOURCES`) and fails until that was decided.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from rlt_core.config import (
    DataConfig,
    EvaluationConfig,
    Frozen,
    GenerationConfig,
    RankedSet,
    RewardSpec,
    ScoringConfig,
    ScratchModel,
    SFTConfig,
    StageResources,
    StudentGRPOConfig,
    TeacherGRPOConfig,
    TraceOrder,
)
from rlt_core.config.refinement import RefinementConfig
from rlt_core.config.reward import off_policy_note
from rlt_core.prompts.format import PromptFormat

Kind = Literal["dataset", "model", "traces", "scores", "evaluation", "ranking", "report"]


class DatasetPrepConfig(Frozen):
    """The source stands here by its content, not by its path."""

    data: DataConfig
    format: PromptFormat
    evaluated: dict[str, str] = Field(default={})
    """Evaluation set -> commit of its data set on the hub (a generated one has none): what
    training questions are compared with, beside the data's own held-out test."""


class BaseModelConfig(Frozen):
    """A model from scratch, or an imported one by its content."""

    scratch: ScratchModel | None = None
    imported: str | None = None
    """`hub:repo@commit`, or the digest of a folder or package file."""
    format: PromptFormat | None = None
    """Of a scratch model: its tags are single tokens and its documents follow it."""


class TeacherSFTStageConfig(Frozen):
    """Question + solution -> trace."""

    sft: SFTConfig
    format: PromptFormat
    seed: int


class TeacherGRPOStageConfig(Frozen):
    """RL of the teacher with the RLT reward."""

    grpo: TeacherGRPOConfig
    reward: RewardSpec
    format: PromptFormat
    seed: int

    @model_validator(mode="after")
    def _consistent(self) -> TeacherGRPOStageConfig:
        self.grpo.check_against(self.reward)
        return self


class TraceGenerationConfig(Frozen):
    """Explanations of the questions of one split."""

    sampling: GenerationConfig
    split: Literal["train", "validation"]
    context: Literal["teacher", "student"] = "teacher"
    """What the writer sees: question and solution, or the question alone; the trace is then the
    thought of its answer."""
    format: PromptFormat
    seed: int


class TraceScoringConfig(Frozen):
    """Per-token log-probs, rewards and ranks of traces."""

    reward: RewardSpec
    scoring: ScoringConfig
    format: PromptFormat
    seed: int
    off_policy: str = Field(default="", exclude_if=operator.not_)
    """Why the traces are not samples of the scoring teacher; empty: they are."""

    @property
    def note(self) -> str:
        """The KL estimator of off-policy traces and its reason; empty for the teacher's own."""
        return off_policy_note(self.reward.kl, self.off_policy) if self.off_policy else ""


class TraceImportConfig(Frozen):
    """Traces that others wrote: a file by its content, or the data set's own."""

    name: str
    digest: str | None
    """Of the file; empty: the traces of the table `questions` that is read."""
    max_dropped: float = 0.05
    """Share of the file's rows that may be unusable."""
    format: PromptFormat


class TraceRefinementConfig(Frozen):
    """Traces, each written anew by an LLM."""

    refinement: RefinementConfig
    format: PromptFormat


class ScoreImportConfig(Frozen):
    """Rewards that others computed, by the content of their file."""

    name: str
    digest: str


class StudentSFTStageConfig(Frozen):
    """Distillation on the data set's traces, on generated or imported ones, or on none."""

    sft: SFTConfig
    traces: Literal["dataset", "traces", "none"]
    """`none`: an empty thought, then the solution."""
    order: TraceOrder = "reward"
    """What a question's traces are ranked by."""
    rank: int | None
    """Train on the trace of this rank of each question (1 is best); all traces when empty."""
    fits: bool = False
    """Train on the best trace of each question whose row has at most `sft.max_tokens`."""
    token_matched: bool = False
    """Leave out questions until the set of this rank has as many explanation tokens as that of
    the rank with the fewest."""
    n_questions: int | None
    format: PromptFormat
    seed: int

    @model_validator(mode="after")
    def _one_choice(self) -> StudentSFTStageConfig:
        if self.fits and self.rank is not None:
            raise ValueError("`fits` and `rank` exclude each other")
        if self.token_matched and self.rank is None:
            raise ValueError("`token_matched` needs a `rank`")
        return self


class StudentGRPOStageConfig(Frozen):
    """RL cold-start on answer correctness."""

    grpo: StudentGRPOConfig
    format: PromptFormat
    seed: int


class EvaluationStageConfig(Frozen):
    """Benchmarks of one model."""

    evaluation: EvaluationConfig
    benchmarks: dict[str, str]
    """Task name -> commit of its data set on the hub."""
    format: PromptFormat
    format_named: bool = False
    """The user named this format for the model (`imports.models.NAME.format`); the model may then
    record another one."""
    seed: int


class RankStatisticsConfig(Frozen):
    """Statistics of student score over rank."""

    ranks: int
    seeds: tuple[int, ...]
    resamples: int
    task: str
    ranked_by: RankedSet


class TableRow(Frozen):
    """A row of an experiment's table."""

    name: str
    """As people call it: `RLT-7B`."""
    model: str
    """Variant of the evaluations that it shows."""
    paper: str | None = None
    """Row of the paper's table (`rlt_core.report.paper.NUMBERS`) that it repeats."""
    baseline: str | None = None
    """Model whose difference is shown; none for the baseline itself."""
    trained: bool = True
    """Whether this run trained it, so that other training seeds could have come."""
    missing: str | None = None
    """Why it did not run; then there is no evaluation of it."""


class ReportConfig(Frozen):
    """The report of a run."""

    profile: str
    title: str
    rows: tuple[TableRow, ...] = ()
    """Rows of the experiment's table, in its order; none: a report of all models."""
    primary: str | None = None
    """Model of the row whose difference was named as the primary contrast beforehand."""
    overlaps: tuple[tuple[str, str], ...] = ()
    """Pairs of models of whose solved problems the overlap is shown."""
    compared: tuple[str, str] | None = None
    """Two variants of trace-scoring whose traces are compared question by question."""


@dataclass(frozen=True)
class Stage:
    """A kind of work."""

    name: str
    version: int
    kind: Kind
    config: type[Frozen]
    tables: tuple[str, ...] = ()
    """Tables that every artifact of the stage has."""
    model: bool = False
    """Whether its artifact holds a `model/` folder."""
    pool: Literal["cpu", "gpu"] = "cpu"
    """Work pool that its nodes go to."""
    shared: Literal["steps", "shards"] | None = None
    """What several processes can share: the batch of every step, all at once, or shards, each in
    its own time; nothing where it is None."""
    splits: bool = False
    """Whether its vLLM engine may be split over several GPUs (`tensor_parallel`); a trainer has
    one."""
    rolls: bool = False
    """Whether it draws from the model that it trains."""

    def processes(self, resources: StageResources) -> int:
        """Processes of each machine that compute one of its nodes."""
        return resources.processes if self.shared else 1

    def machines(self, resources: StageResources) -> int:
        """Runs of the worker pool that share one of its nodes."""
        return resources.machines if self.shared else 1

    def gpus(self, resources: StageResources) -> int:
        """GPUs of each machine that compute one of its nodes."""
        return self.processes(resources) * self.gpus_of_each(resources)

    def gpus_of_each(self, resources: StageResources) -> int:
        """GPUs of each process."""
        return resources.tensor_parallel if self.splits and resources.engine == "vllm" else 1

    @property
    def module(self) -> str:
        """Where the stage's body is: `tasks.stages.<name>`, a function `run(job)`."""
        return f"tasks.stages.{self.name.replace('-', '_')}"


_ALL = (
    Stage(
        "dataset-prep", 3, "dataset", DatasetPrepConfig, ("questions", "dropped", "eval_overlaps")
    ),
    Stage("base-model", 2, "model", BaseModelConfig, model=True, pool="gpu"),
    Stage(
        "teacher-sft", 2, "model", TeacherSFTStageConfig, ("train_steps",), model=True,
        pool="gpu", shared="steps",
    ),
    Stage(
        "teacher-grpo", 3, "model", TeacherGRPOStageConfig, ("train_steps",), model=True,
        pool="gpu", shared="steps", rolls=True,
    ),
    Stage(
        "trace-generation", 2, "traces", TraceGenerationConfig, ("traces",), pool="gpu",
        shared="shards", splits=True,
    ),
    Stage("trace-import", 2, "traces", TraceImportConfig, ("traces", "questions", "dropped")),
    Stage("trace-refinement", 2, "traces", TraceRefinementConfig, ("traces", "dropped")),
    Stage(
        "trace-scoring", 4, "scores", TraceScoringConfig, ("scores",), pool="gpu",
        shared="shards",
    ),
    Stage("score-import", 2, "scores", ScoreImportConfig, ("scores",)),
    Stage(
        "student-sft", 2, "model", StudentSFTStageConfig, ("train_steps",), model=True,
        pool="gpu", shared="steps",
    ),
    Stage(
        "student-grpo", 2, "model", StudentGRPOStageConfig, ("train_steps",), model=True,
        pool="gpu", shared="steps", rolls=True,
    ),
    Stage(
        "evaluation", 2, "evaluation", EvaluationStageConfig, ("eval_samples", "eval_scores"),
        pool="gpu", shared="shards", splits=True,
    ),
    Stage("rank-statistics", 1, "ranking", RankStatisticsConfig, ("rank_scores",)),
    Stage("report", 3, "report", ReportConfig),
)  # fmt: skip

STAGES: dict[str, Stage] = {stage.name: stage for stage in _ALL}


def parse_config(stage: str, config: dict[str, Any]) -> Frozen:
    """A stage's config from its JSON form."""
    return STAGES[stage].config.model_validate(config)
