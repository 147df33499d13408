"""One frozen tree that says what a run computes.

Everything here but `Resources` and local paths determines the output and is hashed, node by node
(`rlt_core.graph`). Sizes are in tokens, questions or completions as the names say.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from rlt_core.config.base import (
    DType,
    Fraction,
    Frozen,
    Positive,
    Seed,
)
from rlt_core.config.data import (
    DataConfig,
    FieldMapping,
)
from rlt_core.config.experiments import (
    CountdownConfig,
    LargerStudent,
    RankAblationConfig,
    RankedSet,
    RewardAblationConfig,
    TraceOrder,
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
    FolderModel,
    HubModel,
    ImportedModel,
    ModelSource,
    PackageModel,
    ScratchModel,
)
from rlt_core.config.refinement import (
    Endpoint,
    RefinementConfig,
)
from rlt_core.config.resources import (
    Resources,
    StageResources,
)
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

__all__ = [
    "REWARD_PRESETS",
    "BudgetForcing",
    "Config",
    "CorrectnessReward",
    "CountdownConfig",
    "DType",
    "DataConfig",
    "Endpoint",
    "EvaluationConfig",
    "FieldMapping",
    "FolderModel",
    "Fraction",
    "Frozen",
    "GRPOConfig",
    "GenerationConfig",
    "HubModel",
    "ImportedModel",
    "Imports",
    "KLEstimator",
    "LargerStudent",
    "LoRA",
    "ModelSource",
    "Optimizer",
    "PackageModel",
    "Positive",
    "PromptPreset",
    "RankAblationConfig",
    "RankedSet",
    "Reduction",
    "ReferenceSync",
    "RefinementConfig",
    "Resources",
    "RewardAblationConfig",
    "RewardSpec",
    "SFTConfig",
    "Sampling",
    "ScoringConfig",
    "ScratchModel",
    "StageResources",
    "StudentGRPOConfig",
    "StudentSFTConfig",
    "TeacherGRPOConfig",
    "TeacherSFTConfig",
    "TraceOrder",
    "TraceSource",
]


class Imports(Frozen):
    """What others made, evaluated and compared like our own. Names are the user's."""

    models: dict[str, ImportedModel] = Field(default={})
    """Models to evaluate and compare: hub:org/name[@commit], folder:path or package:name; `format`
    of one is the prompt format that it was trained with, where that is not the pipeline's."""
    traces: dict[str, str] = Field(default={})
    """Trace files (question, solution, trace): each gets a student and a row in the report."""
    scores: dict[str, str] = Field(default={})
    """Score files (question_id, sample, reward)."""


class Config(Frozen):
    """The whole pipeline."""

    profile: str
    """Name of the profile that this came from."""
    seeds: tuple[Seed, ...] = (0,)
    """Training seeds: each expands the nodes that depend on one."""
    prompt_format: str = "rlt"
    """A shipped format (`rlt`, `r1`, `tiny`) or a format file (JSON)."""
    teacher_system: str | None = None
    """System prompt of the teacher, in place of the prompt format's: a text file, or the text. The
    student's may come from the data (`data.fields.system`)."""
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
    teacher_grpo: TeacherGRPOConfig
    """Reinforcement learning of the teacher."""
    reward: RewardSpec = RewardSpec()
    """What the teacher is rewarded for."""
    trace_generation: GenerationConfig
    """The teacher writes traces."""
    trace_refinement: RefinementConfig | None = None
    """An LLM writes the RLT's traces anew and a student learns from those; empty: none does."""
    trace_scoring: ScoringConfig = ScoringConfig()
    """The traces are scored by the reward."""
    rank_ablation: RankAblationConfig | None = RankAblationConfig()
    """Empty: no rank ablation."""
    reward_ablation: RewardAblationConfig | None = RewardAblationConfig()
    """Empty: no reward ablation."""
    student_sft: StudentSFTConfig
    """Students learn from the traces."""
    student_sft_subset: StudentSFTConfig | None = None
    """Students of the small subset (the paper's 1K), for table 1; empty: none."""
    larger_student: LargerStudent | None = None
    """A second, larger kind of student for table 1 (the paper's 32B); empty: none."""
    trace_sources: dict[str, TraceSource] = Field(default={})
    """Other data sets whose own traces students of table 1 learn from; names are the user's."""
    countdown: CountdownConfig | None = None
    """The countdown experiment; empty: there is none."""
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
