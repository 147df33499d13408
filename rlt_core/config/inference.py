"""Generation, scoring, evaluation."""

from __future__ import annotations

from pydantic import Field

from rlt_core.config.base import DType, Fraction, Frozen, Positive


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
    """A trace with a longer context is not scored: its status is `too_long`."""


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
