"""Settings of the paper's experiments; each may be empty."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlt_core.config.base import Frozen, Positive
from rlt_core.config.data import DataConfig
from rlt_core.config.inference import BudgetForcing
from rlt_core.config.models import ModelSource
from rlt_core.config.training import StudentSFTConfig
from rlt_core.names import Name

TraceOrder = Literal[
    "reward", "r_ss", "r_kl", "likelihood", "rank_surprisal", "length", "correct", "random"
]
"""Order of a question's traces, best first: by the reward or one of its parts; by the student's
mean log-prob of the explanation; by the rank-surprisal ratio (lower is better); by fewest tokens;
by whether the explanation arrives at the solution; at random (seeded)."""
RankedSet = Literal[TraceOrder, "token-matched"]
"""A `TraceOrder`, or `token-matched`: ranked by reward, with as many tokens in every set."""


class RankAblationConfig(Frozen):
    """One student per rank."""

    ranks: Positive = 16
    """Completions per question from the teacher before RL, and number of students."""
    n_questions: Positive | None = None
    """Number of questions with completions to rank, chosen by the seed; empty: all."""
    resamples: Positive = 2000
    """Bootstrap resamples of seeds and test questions."""
    sets: tuple[RankedSet, ...] = Field(min_length=1, default=(
        "reward", "random", "length", "correct", "token-matched", "r_ss", "r_kl", "likelihood",
        "rank_surprisal",
    ))  # fmt: skip
    """Orders by which the experiment `rank-ablation` ranks, with `ranks` students each."""
    in_full_pipeline: bool = True
    """Whether the full pipeline has the students of the first of these sets."""


class TraceSelectionConfig(Frozen):
    """Which explanations become a student's training data."""

    keep: Positive = 1
    """Explanations that are kept of a question, the best by the reward."""
    only_correct: bool = False
    """Keep only explanations that arrive at the solution's answer by themselves."""
    max_student_tokens: Positive | None = None
    """Longest row of the student (question, explanation, solution); empty: its positions."""


class TeacherBenchConfig(Frozen):
    """Teachers and students that the experiment `bench-teachers` crosses."""

    teachers: dict[Name, ModelSource] = Field(default={})
    """Models that explain; `endpoint_teacher` comes on top."""
    students: dict[Name, ModelSource] = Field(min_length=1)
    """Models for which each teacher's explanations are scored."""
    train: bool = False
    """Whether each student is also trained on each teacher's best explanations, and tested."""


class TraceSource(Frozen):
    """A data set whose own traces students learn from, for comparison."""

    data: DataConfig
    """Its questions, solutions and traces."""
    recipe: Literal["student_sft", "student_sft_subset"] = "student_sft"
    """Section of the config by which its students are trained."""
    budgets: tuple[BudgetForcing, ...] = ()
    """Budget forcing of its students when they are tested, one row of the table for each; empty:
    one row without."""

    @model_validator(mode="after")
    def _rows_differ(self) -> TraceSource:
        if len({one.continuations for one in self.budgets}) < len(self.budgets):
            raise ValueError("`budgets` must differ in `continuations`")
        return self


class LargerStudent(Frozen):
    """A student of more parameters than the teacher (the paper's 32B)."""

    model: ModelSource
    """Model that it starts from."""
    traces: Positive = 4
    """Traces per question, of which the one with the best reward that fits `max_tokens` is used."""


class CountdownConfig(Frozen):
    """The domain that the teacher never saw."""

    data: DataConfig
    """Training and test problems."""
    student_sft: StudentSFTConfig | None = None
    """Training of the students of its zero-shot traces; empty: `student_sft`."""


class RewardAblationConfig(Frozen):
    """Teachers of other rewards, beside `r_SS only`, `no min/max` and `no KL`."""

    kl_weights: tuple[float, ...] = Field(default=(1.0, 10.0))
    """Other lambdas than `reward.kl_weight`."""
    alphas: tuple[float, ...] = Field(default=(0.1,))
    """Other alphas than `reward.alpha`."""
