"""One frozen tree that says what a run computes.

Everything here but `Resources` and local paths determines the output and is hashed, node by node
(`rlt_core.graph`). Sizes are in tokens, questions or completions as the names say.
"""

from __future__ import annotations

import operator

from pydantic import Field, model_validator

from rlt_core.config.base import DType, Fraction, Frozen, Positive, Seed
from rlt_core.config.data import DataConfig, FieldMapping
from rlt_core.config.endpoint import EndpointTeacherConfig, RefinementConfig
from rlt_core.config.experiments import (
    CountdownConfig,
    LargerStudent,
    RankAblationConfig,
    RankedSet,
    RewardAblationConfig,
    TeacherBenchConfig,
    TraceOrder,
    TraceSelectionConfig,
    TraceSource,
)
from rlt_core.config.inference import (
    BudgetForcing,
    EvaluationConfig,
    GenerationConfig,
    PromptPreset,
    Sampling,
    ScoringConfig,
)
from rlt_core.config.models import (
    ArtifactModel,
    FolderModel,
    HubModel,
    ImportedModel,
    ModelSource,
    PackageModel,
    ScratchModel,
)
from rlt_core.config.resources import Resources, StageResources
from rlt_core.config.reward import (
    REWARD_PRESETS,
    CorrectnessReward,
    KLEstimator,
    Reduction,
    RewardSpec,
)
from rlt_core.config.training import (
    GRPOConfig,
    LoRA,
    Optimizer,
    ReferenceSync,
    SFTConfig,
    StudentGRPOConfig,
    StudentSFTConfig,
    TeacherGRPOConfig,
    TeacherSFTConfig,
)
from rlt_core.names import Name


class Imports(Frozen):
    """Models, traces and scores from elsewhere, evaluated and compared like our own. The user
    chooses their names."""

    models: dict[Name, ImportedModel] = Field(default={})
    """Models to evaluate and compare: hub:org/name[@commit], folder:path or package:name, each with
    the `format` it was trained with, where that is not the pipeline's prompt format."""
    traces: dict[Name, str] = Field(default={})
    """Trace files (question, solution, trace): each gets a student and a row in the report."""
    scores: dict[Name, str] = Field(default={})
    """Score files (question_id, sample, reward)."""
    benchmarks: dict[Name, DataConfig] = Field(default={}, exclude_if=operator.not_)
    """Benchmarks of your own, to be named in `evaluation.tasks`: all usable rows are asked. The
    columns are `question` and `answer` unless `fields` names others."""


class Config(Frozen):
    """The whole pipeline."""

    profile: str
    """Name of the profile."""
    seeds: tuple[Seed, ...] = (0,)
    """Training seeds: each expands the nodes that depend on one."""
    prompt_format: str = "rlt"
    """A shipped format (`rlt`, `r1`, `brief`, `tiny`) or a format file (JSON)."""
    teacher_system: str | None = None
    """System prompt of the teacher, in place of the prompt format's: a text file, or the text. The
    student's system prompt may come from the data (`data.fields.system`)."""
    data: DataConfig = DataConfig()
    """Questions of the whole pipeline."""
    rl_data: DataConfig | None = None
    """Questions of the RL cold-start (the paper: LIMR); empty: the questions of `data`."""
    base_model: ModelSource = ScratchModel()
    """Model that the teacher starts from."""
    reward_student: ModelSource | None = None
    """The frozen student whose log-probs are the reward; empty: the base model."""
    reward_student_sft: bool = Field(default=False, exclude_if=operator.not_)
    """Train the reward student on the data set's own traces first, as the distilled students are
    trained (the paper's is Bespoke-Stratos-7B); each seed then has its own."""
    student: ModelSource | None = None
    """Model that distilled students start from; empty: the base model."""
    teacher_sft: TeacherSFTConfig
    """Warm-up of the teacher."""
    teacher_grpo: TeacherGRPOConfig
    """Reinforcement learning of the teacher."""
    reward: RewardSpec = RewardSpec()
    """The teacher's reward."""
    trace_generation: GenerationConfig
    """How the teacher writes traces."""
    trace_refinement: RefinementConfig | None = None
    """An LLM rewrites the RLT's traces, and a student learns from the result; empty: not done."""
    endpoint_teacher: EndpointTeacherConfig | None = None
    """An LLM behind an OpenAI-compatible endpoint explains the questions, and a student learns from
    the result; empty: not done."""
    trace_scoring: ScoringConfig = ScoringConfig()
    """How traces are scored by the reward."""
    trace_selection: TraceSelectionConfig = TraceSelectionConfig()
    """Which explanations the experiment `teach` keeps."""
    teacher_bench: TeacherBenchConfig | None = None
    """Teachers and students of the experiment `bench-teachers`; empty: the teacher before and after
    RL, and the model that students start from."""
    rank_ablation: RankAblationConfig | None = RankAblationConfig()
    """Empty: no rank ablation."""
    reward_ablation: RewardAblationConfig | None = RewardAblationConfig()
    """Empty: no reward ablation."""
    student_sft: StudentSFTConfig
    """How students learn from traces."""
    student_sft_subset: StudentSFTConfig | None = None
    """Students of the small subset (the paper's 1K), for table 1; empty: none."""
    larger_student: LargerStudent | None = None
    """A second, larger kind of student for table 1 (the paper's 32B); empty: none."""
    trace_sources: dict[Name, TraceSource] = Field(default={})
    """Other data sets whose own traces students of table 1 learn from; the user chooses their
    names."""
    countdown: CountdownConfig | None = None
    """The countdown experiment; empty: there is none."""
    student_grpo: StudentGRPOConfig | None
    """Empty: no RL after distillation."""
    evaluation: EvaluationConfig
    """How students and imported models are tested."""
    imports: Imports = Imports()
    """Models, traces, scores and benchmarks from elsewhere."""
    resources: Resources = Resources()
    """Where stages run and how fast; never hashed."""

    @model_validator(mode="after")
    def _seeds(self) -> Config:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds must be a non-empty list of different integers")
        return self

    @model_validator(mode="after")
    def _held_out(self) -> Config:
        if self.trace_scoring.utility_questions and not self.data.n_validation:
            raise ValueError(
                "trace_scoring.utility_questions measures on validation questions, and "
                "data.n_validation is 0: set it, e.g. to 32"
            )
        return self
