"""Per-token log-probs of explanations under student and teacher, one model at a time.

Shapes: S tokens of a solution, T of an explanation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from rlt_core.config import RewardSpec
from rlt_core.progress import Progress
from rlt_core.prompts.renderer import Context, Span
from rlt_core.reward.formula import RewardParts, reward_parts
from rlt_core.scoring.lm_head import FLOATS
from rlt_core.scoring.logprobs import States, select
from rlt_core.scoring.passes import decoder_and_head, logit_transform

Loader = Callable[[], AbstractContextManager[nn.Module]]
"""Provides a model for one phase, after which it may keep, offload or free it."""


@dataclass(frozen=True)
class Contexts:
    """An explanation in both contexts."""

    student: Context
    """The student's, with the solution after the explanation."""
    teacher: Context

    @property
    def solution(self) -> Span:
        """The solution's span in the student's context."""
        assert self.student.solution is not None
        return self.student.solution

    @property
    def longest(self) -> int:
        """Tokens of the longer of the two."""
        return max(len(self.student.ids), len(self.teacher.ids))


@dataclass(frozen=True)
class TokenScores:
    """Log-probs at the spec's temperature, natural logarithms: solution (S,), think (T,)."""

    student_solution: FLOATS
    student_think: FLOATS
    teacher_think: FLOATS
    think_kl: FLOATS | None = None
    """KL over the whole vocabulary at each token, if the spec's `kl` is full."""
    think_surprisal: FLOATS | None = None
    """The student's surprisal, at temperature 1; with `ranks`."""
    think_ranks: NDArray[np.int64] | None = None
    """The student's ranks, 1 for its likeliest word; with `ranks`."""

    def reward(self, closed: bool, spec: RewardSpec) -> RewardParts:
        """Return the reward and its parts (`rlt_core.reward.formula`). Raises ValueError."""
        logprobs = self.student_solution, self.student_think, self.teacher_think
        return reward_parts(*logprobs, closed, spec, self.think_kl)


def token_scores(
    contexts: Sequence[Contexts],
    load_student: Loader,
    load_teacher: Loader,
    spec: RewardSpec,
    tokens_per_batch: int,
    *,
    ranks: bool,
    words: int | None = None,
    progress: Progress | None = None,
) -> list[TokenScores]:
    """Score every explanation, in order. First the student scores all, then the teacher.

    `words`: the tokenizer's, over which KL is computed if the spec's `kl` is full.
    """
    progress = progress or Progress()
    if not contexts:
        return []
    hidden: dict[int, Tensor] | None = {} if spec.kl == "full" else None
    states = None
    with load_student() as model:
        by_student = select(
            model,
            [each.student.ids for each in contexts],
            [[each.solution, each.student.think] for each in contexts],
            spec.temperature,
            tokens_per_batch,
            ranks=ranks,
            kept=hidden,
            progress=progress.part(0, 2),
        )
        if hidden is not None:
            thinks = {i: each[_size(contexts[i].solution) :] for i, each in hidden.items()}
            states = States(decoder_and_head(model)[1], logit_transform(model), thinks, words)
    with load_teacher() as model:
        by_teacher = select(
            model,
            [each.teacher.ids for each in contexts],
            [[each.teacher.think] for each in contexts],
            spec.temperature,
            tokens_per_batch,
            kl_to=states,
            progress=progress.part(1, 2),
        )
    found = []
    for each, student, teacher in zip(contexts, by_student, by_teacher, strict=True):
        solution, think = student.split([_size(each.solution), _size(each.student.think)])
        found.append(
            TokenScores(
                student_solution=solution.logprobs,
                student_think=think.logprobs,
                teacher_think=teacher.logprobs,
                think_kl=teacher.kl,
                think_surprisal=think.surprisal,
                think_ranks=think.ranks,
            )
        )
    return found


def _size(span: Span) -> int:
    return span.end - span.start
