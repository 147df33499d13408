"""Generation, scoring, evaluation."""

from __future__ import annotations

import operator
from typing import Literal

from pydantic import Field, model_validator

from rlt_core.config.base import Commit, DType, Frozen, Positive, Probability
from rlt_core.config.reward import KLEstimator


class Sampling(Frozen):
    """How completions are sampled."""

    n: Positive = 1
    """Completions per question."""
    temperature: float = Field(default=0.7, ge=0)
    """0 is greedy."""
    top_p: Probability = 1.0
    """Sample among the likeliest tokens that make up this probability."""
    max_tokens: Positive = 16384
    """New tokens at most; a completion that reaches it has finish reason `length`."""
    dtype: DType = "float32"
    """Number format of the model; a CPU that cannot multiply bfloat16 computes in float32."""


class GenerationConfig(Sampling):
    """Traces written by a teacher."""

    n_questions: Positive | None = None
    """Number of questions to write traces for, chosen by the seed; empty: all."""


ANCHORING_CONTEXTS = 5
"""The solution after none, a quarter, half and three quarters of an explanation; a wrong one."""
UTILITY_QUESTIONS = 32
"""Validation questions, at most, on which the utility of a trace is measured: the first by id whose
own explanation arrives at the solution."""


class ScoringConfig(Frozen):
    """Log-probs of traces under the reward student and the teacher."""

    dtype: DType = "float32"
    """Number format of both models; a CPU that cannot multiply bfloat16 computes in float32."""
    max_tokens: Positive = 32768
    """A trace with a longer context is not scored: its status is `too_long`."""
    anchoring: bool = Field(default=False, exclude_if=operator.not_)
    """Also measure whether an explanation leads to its solution or merely announces it
    (`anchor_gap` and `solved_at` of `scores`): one more pass of the student over five contexts of
    each trace."""
    utility_questions: int = Field(default=0, ge=0, exclude_if=operator.not_)
    """Training questions, chosen by the seed, of whose traces the utility is measured (`utility` of
    `scores`): one SFT step of the student on the trace, and the change of the log-prob of held-out
    solutions, each after the data set's own explanation, if that arrives at it
    (`data.n_validation`). One backward pass and up to 32 contexts for each trace."""
    utility_learning_rate: float = Field(default=1e-4, gt=0, exclude_if=lambda lr: lr == 1e-4)
    """Learning rate of that step. A small one measures the direction: a full one of a recipe
    harms on any single trace."""
    off_policy_kl: KLEstimator = Field(default="full", exclude_if=lambda kl: kl == "full")
    """In place of `reward.kl` for traces that are not samples of the scoring teacher: imported or
    refined ones, the data set's own, another model's. `k1` is unbounded below there."""


class BudgetForcing(Frozen):
    """Thinking made longer or shorter at test time (s1, arXiv 2501.19393, section 3.1)."""

    max_thinking_tokens: Positive | None = None
    """Tokens after which thinking is cut, its end written, and the answer asked for; empty: it is
    not cut."""
    continuations: int = Field(default=0, ge=0)
    """How many times the end of thinking is suppressed and `continuation` written instead."""
    continuation: str = Field(default="Wait", min_length=1)
    """Text that makes the model continue thinking."""

    @model_validator(mode="after")
    def _does_something(self) -> BudgetForcing:
        if self.max_thinking_tokens is None and self.continuations == 0:
            raise ValueError("give `max_thinking_tokens`, `continuations` or both")
        return self


PromptPreset = Literal["lighteval", "skythought"]


class EvaluationConfig(Sampling):
    """Benchmarks by name, their prompts and sampling. The paper's settings are not known; these are
    ours."""

    tasks: tuple[str, ...] = ("test",)
    """`test` (the data's held-out questions), `countdown`, `aime24`, `math_500`, `gpqa_diamond`, or
    a name in `imports.benchmarks`."""
    prompts: PromptPreset = "lighteval"
    """Prompts of the benchmarks: those of lighteval 0.13, or those of SkyThought at the commit that
    the reference names (the boxed instruction before the problem)."""
    revisions: dict[str, Commit] = Field(default={}, exclude_if=operator.not_)
    """Benchmark -> commit of its data set on the hub; without: the commit that `rlt fetch` pinned
    here."""
    max_questions: Positive | None = None
    """Number of questions per task, from the first; empty: all."""
    samples: dict[str, Positive] = Field(default={}, exclude_if=operator.not_)
    """Task -> completions per question, where not `n`; a task of few questions needs more."""
    pass_at: tuple[Positive, ...] = ()
    """k of pass@k, reported beside the mean over all completions (avg@n); no k may exceed the
    completions per question of any task."""
    grading_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds for grading one answer, after which it counts as `grader_failed`."""
    budget: BudgetForcing | None = None
    """Budget forcing of every tested model; empty: none."""

    @model_validator(mode="after")
    def _samples_suffice(self) -> EvaluationConfig:
        for field, named in (("samples", set(self.samples)), ("revisions", set(self.revisions))):
            if unknown := sorted(named - set(self.tasks)):
                raise ValueError(f"`{field}` names {', '.join(unknown)}, not among `tasks`")
        for task in self.tasks:
            if max(self.pass_at, default=1) > self.samples_of(task):
                raise ValueError(
                    f"pass@{max(self.pass_at)} needs as many completions per question, and {task} "
                    f"has {self.samples_of(task)}: raise `n` or `samples.{task}`, or change "
                    "`pass_at`"
                )
        return self

    def samples_of(self, task: str) -> int:
        """Completions of each question of a task."""
        return self.samples.get(task, self.n)
