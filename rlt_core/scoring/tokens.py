"""Per-token log-probs of explanations under student and teacher, one model at a time.

Shapes: S tokens of a solution, T of an explanation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rlt_core.config import RewardSpec
from rlt_core.progress import Progress
from rlt_core.prompts.renderer import Context, Span
from rlt_core.scoring.lm_head import FLOATS
from rlt_core.scoring.logprobs import Selected, cut, select

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
    think_kl: FLOATS | None
    """KL over the whole vocabulary at each token, if the spec's `kl` is full."""
    think_surprisal: FLOATS | None
    """The student's surprisal, at temperature 1; with `ranks`."""
    think_ranks: NDArray[np.int64] | None
    """The student's ranks, 1 for its likeliest word; with `ranks`."""


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
    full = spec.kl == "full"
    with load_student() as model:
        student = select(
            model,
            [each.student.ids for each in contexts],
            [np.concatenate([_range(each.solution), _range(each.student.think)])
             for each in contexts],
            spec.temperature,
            tokens_per_batch,
            ranks=ranks,
            keep_states=full,
            words=words,
            progress=progress.part(0, 2),
        )  # fmt: skip
    if student.states is not None:
        for i, each in enumerate(contexts):
            student.states.hidden[i] = student.states.hidden[i][_size(each.solution) :]
    with load_teacher() as model:
        teacher = select(
            model,
            [each.teacher.ids for each in contexts],
            [_range(each.teacher.think) for each in contexts],
            spec.temperature,
            tokens_per_batch,
            kl_to=student.states,
            progress=progress.part(1, 2),
        )
    return [_scores(i, each, student, teacher) for i, each in enumerate(contexts)]


def _scores(i: int, contexts: Contexts, student: Selected, teacher: Selected) -> TokenScores:
    sizes = [_size(contexts.solution), _size(contexts.student.think)]
    solution, think = cut(student.logprobs[i], sizes)
    return TokenScores(
        student_solution=solution,
        student_think=think,
        teacher_think=teacher.logprobs[i],
        think_kl=None if teacher.kl is None else teacher.kl[i],
        think_surprisal=student.surprisal[i][sizes[0] :] if student.surprisal else None,
        think_ranks=student.ranks[i][sizes[0] :] if student.ranks else None,
    )


def _range(span: Span) -> NDArray[np.int64]:
    return np.arange(span.start, span.end)


def _size(span: Span) -> int:
    return span.end - span.start
