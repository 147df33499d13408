"""Per-token log-probs of explanations under student and teacher, one model at a time.

Shapes: S tokens of a solution, T of an explanation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from rlt_core.config import RewardSpec
from rlt_core.progress import Progress
from rlt_core.prompts.renderer import Span
from rlt_core.reward.formula import RewardParts, reward_parts
from rlt_core.scoring.alignment import Contexts, SharedSpans
from rlt_core.scoring.lm_head import FLOATS, HeadScores
from rlt_core.scoring.logprobs import States, decoder_and_head, logit_transform, select

Loader = Callable[[], AbstractContextManager[nn.Module]]
"""Provides a model for one phase, after which it may keep, offload or free it."""


@dataclass(frozen=True)
class TokenScores:
    """Log-probs at the spec's temperature, natural logarithms: solution (S,), think (T,), T by each
    model's own tokenizer."""

    student_solution: FLOATS
    student_think: FLOATS
    teacher_think: FLOATS | None
    """None: there is no model of the teacher."""
    think_kl: FLOATS | None = None
    """KL over the whole vocabulary at each token, if the spec's `kl` is full."""
    think_surprisal: FLOATS | None = None
    """The student's surprisal, at temperature 1; with `ranks`."""
    think_ranks: NDArray[np.int64] | None = None
    """The student's ranks, 1 for its likeliest word; with `ranks`."""
    shared: SharedSpans | None = None
    """Of two tokenizers; None: both models have the same tokens."""

    def compared(self) -> tuple[FLOATS, FLOATS | None]:
        """Return the student's and the teacher's log-probs of the same tokens, (T,), or of the
        spans of text that their tokenizers share, (M,)."""
        if self.shared is None or self.teacher_think is None:
            return self.student_think, self.teacher_think
        student = self.shared.summed(self.student_think, self.shared.student)
        return student, self.shared.summed(self.teacher_think, self.shared.teacher)

    def columns(self) -> dict[str, Any]:
        """Return the columns of `scores` with one number per token, or per shared span."""
        student_think, teacher_think = self.compared()
        return {
            "student_solution_logprobs": self.student_solution,
            "student_think_logprobs": student_think,
            "teacher_think_logprobs": teacher_think,
            "think_kl": self.think_kl,
            "think_span_ends": self.shared and self.shared.ends,
        }

    def reward(self, closed: bool, spec: RewardSpec) -> RewardParts:
        """Return the reward and its parts (`rlt_core.reward.formula`). Raises ValueError."""
        return reward_parts(self.student_solution, *self.compared(), closed, spec, self.think_kl)


def token_scores(
    contexts: Sequence[Contexts],
    load_student: Loader,
    load_teacher: Loader | None,
    spec: RewardSpec,
    tokens_per_batch: int,
    *,
    ranks: bool,
    words: int | None = None,
    progress: Progress | None = None,
) -> list[TokenScores]:
    """Score every explanation, in order. First the student scores all, then the teacher, if there
    is one.

    `words`: the tokenizer's, over which KL is computed if the spec's `kl` is full.
    """
    progress = progress or Progress()
    if not contexts:
        return []
    hidden: dict[int, Tensor] | None = {} if load_teacher and spec.kl == "full" else None
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
            progress=progress.part(0, 2 if load_teacher else 1),
        )
        if hidden is not None:
            thinks = {i: each[_size(contexts[i].solution) :] for i, each in hidden.items()}
            states = States(decoder_and_head(model)[1], logit_transform(model), thinks, words)
    if load_teacher is None:
        return [_scores(*each, None) for each in zip(contexts, by_student, strict=True)]
    in_teacher = [each.teacher for each in contexts if each.teacher]
    with load_teacher() as model:
        by_teacher = select(
            model,
            [each.ids for each in in_teacher],
            [[each.think] for each in in_teacher],
            spec.temperature,
            tokens_per_batch,
            kl_to=states,
            progress=progress.part(1, 2),
        )
    return [_scores(*each) for each in zip(contexts, by_student, by_teacher, strict=True)]


def _scores(contexts: Contexts, student: HeadScores, teacher: HeadScores | None) -> TokenScores:
    size = _size(contexts.solution)
    think = student.part(size, len(student.logprobs))
    return TokenScores(
        student_solution=student.logprobs[:size],
        student_think=think.logprobs,
        teacher_think=None if teacher is None else teacher.logprobs,
        think_kl=None if teacher is None else teacher.kl,
        think_surprisal=think.surprisal,
        think_ranks=think.ranks,
        shared=contexts.shared,
    )


def _size(span: Span) -> int:
    return span.end - span.start
