"""Explanations under student and teacher: contexts by token id, and what two tokenizers share.

With one vocabulary the ids of the explanation travel. With two (`reward.alignment` = text), its
text does: each model reads it by its own tokenizer, and log-probs are compared over the spans of
text that end where a token ends in both, each the sum of its tokens' log-probs, the log-prob of the
span's text given what precedes it (as TRL's GOLD trainer merges tokens,
https://huggingface.co/docs/trl/main/en/gold_trainer).

Shapes: T tokens of an explanation's span, one number per tokenizer; M shared spans of text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from transformers import PreTrainedTokenizerFast

from rlt_core.errors import UserError
from rlt_core.prompts.renderer import Context, Renderer, Span

Ends = NDArray[np.int64]
"""For each token, (T,), the number of characters up to its end; up to the end of the character, for
a token that ends inside one."""


@dataclass(frozen=True)
class SharedSpans:
    """Spans of text that both tokenizers have, and each token's span."""

    ends: Ends
    """Characters up to the end of each span, (M,)."""
    student: NDArray[np.int64]
    """Span of each of the student's tokens, (T,)."""
    teacher: NDArray[np.int64]
    """Span of each of the teacher's tokens, (T,)."""

    @classmethod
    def of(cls, student: Ends, teacher: Ends) -> SharedSpans:
        """Both end with the text. Tokens of the padding around it belong to its first or last
        span."""
        ends = np.intersect1d(student, teacher)
        ends = ends[ends > 0]
        return cls(ends, np.searchsorted(ends, student), np.searchsorted(ends, teacher))

    def summed(self, logprobs: ArrayLike, spans: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the log-prob of each span, (M,), from those of one model's tokens, (T,)."""
        return np.bincount(spans, logprobs, len(self.ends)).astype(np.float32)


@dataclass(frozen=True)
class Contexts:
    """An explanation in the contexts to score."""

    student: Context
    """The student's, with the solution after the explanation."""
    teacher: Context | None
    """None: there is no model of the teacher."""
    think_ids: Sequence[int]
    """The student's ids of the explanation."""
    shared: SharedSpans | None = None
    """None: both have the same ids."""

    @property
    def solution(self) -> Span:
        """The solution's span in the student's context."""
        assert self.student.solution is not None
        return self.student.solution

    @property
    def longest(self) -> int:
        """Tokens of the longer of the two."""
        return max(len(each.ids) for each in (self.student, self.teacher) if each)


class ContextBuilder:
    """Puts explanations into the contexts of a student and a teacher."""

    def __init__(
        self,
        student: Renderer,
        teacher: Renderer | None,
        alignment: Literal["ids", "text"] = "ids",
        names: tuple[str, str] = ("the teacher", "the reward student"),
    ) -> None:
        """`teacher`: None if nobody has the teacher's model; then explanations travel as text.
        `names`: of teacher and student, for errors. Raises UserError for different vocabularies
        unless the alignment is `text`."""
        self.student, self.teacher = student, teacher
        if teacher and alignment == "ids":
            require_same_vocabulary(teacher.tokenizer, student.tokenizer, names)
        self.one_vocabulary = teacher is not None and (
            alignment == "ids"
            or vocabulary_digest(teacher.tokenizer) == vocabulary_digest(student.tokenizer)
        )

    def contexts(
        self, question: str, solution: str, text: str, ids: Sequence[int] | None = None
    ) -> Contexts:
        """Return an explanation's contexts. `ids`: the teacher's ids of it; None: it is known as
        text alone."""
        if self.teacher is None:
            ids = self.student.encode_block(text)
            return Contexts(self.student.student_context(question, ids, solution), None, ids)
        by_teacher = self.teacher.encode_block(text) if ids is None else ids
        by_student = by_teacher if self.one_vocabulary else self.student.encode_block(text)
        if not (by_student and by_teacher):  # nothing, or padding that one of them has
            by_student = by_teacher = []
        student = self.student.student_context(question, by_student, solution)
        teacher = self.teacher.teacher_context(question, solution, by_teacher)
        shared = None
        if by_student and not self.one_vocabulary:
            shared = SharedSpans.of(
                _ends_in(student, by_student, encoded_ends(self.student, text), len(text)),
                _ends_in(
                    teacher, by_teacher,
                    encoded_ends(self.teacher, text)
                    if ids is None
                    else sampled_ends(self.teacher, ids, len(text)),
                    len(text),
                ),
            )  # fmt: skip
        return Contexts(student, teacher, by_student, shared)


def _ends_in(context: Context, ids: Sequence[int], ends: Ends, length: int) -> Ends:
    """Return the ends of all tokens of a span, the scored padding's included."""
    ends = np.minimum(ends, length)
    ends[-1] = length
    before = _place(context, ids)
    after = context.think.end - context.think.start - before - len(ids)
    return np.concatenate([np.zeros(before), ends, np.full(after, length)]).astype(np.int64)


def _place(context: Context, ids: Sequence[int]) -> int:
    """Return the number of scored tokens before the explanation's own."""
    span = context.ids[slice(*context.think)]
    return next(n for n in range(len(span)) if span[n : n + len(ids)] == list(ids))


def encoded_ends(renderer: Renderer, text: str) -> Ends:
    """Return the ends of the tokens of `renderer.encode_block(text)`."""
    block = renderer.encode_block(text)
    encoding = renderer.tokenizer(
        text + renderer.format.missing_padding(text), add_special_tokens=False,
        split_special_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    offsets = encoding["offset_mapping"]
    ends = [end for _, end in offsets]
    for i in reversed(range(len(ends) - 1)):
        if offsets[i + 1][0] < ends[i]:  # both have a part of one character
            ends[i] = ends[i + 1]
    return np.array(ends[: len(block)], np.int64)


def sampled_ends(renderer: Renderer, ids: Sequence[int], length: int) -> Ends:
    """Return the ends of sampled tokens, whose text has `length` characters, padding excluded.

    Each token is decoded behind the one before, for tokenizers that drop a leading space.
    """

    def decoded(part: Sequence[int]) -> str:
        found = renderer.tokenizer.decode(
            list(part), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(found)

    ends = np.full(len(ids), length, np.int64)
    before = whole = first = position = 0
    for i in range(len(ids)):
        text = decoded(ids[before : i + 1])
        if text.endswith("\ufffd"):  # it ends inside a character
            continue
        position += len(text) - len(decoded(ids[before:whole]))
        ends[first : i + 1] = position
        before, whole, first = whole, i + 1, i + 1
    return ends


def vocabulary_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the hex sha256 of the mapping from tokens to ids, added tokens included."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def require_same_vocabulary(
    first: PreTrainedTokenizerFast, second: PreTrainedTokenizerFast, names: tuple[str, str]
) -> None:
    """Raise UserError unless both tokenizers give every token the same id."""
    if vocabulary_digest(first) == vocabulary_digest(second):
        return
    ours, theirs = first.get_vocab(), second.get_vocab()
    odd = [token for token in {**ours, **theirs} if ours.get(token) != theirs.get(token)]
    raise UserError(
        f"{names[0]} and {names[1]} have different vocabularies ({len(ours)} and {len(theirs)} "
        f"tokens; {len(odd)} differ, for instance {sorted(odd)[0]!r}): token ids travel between "
        "them; choose models of one family, or let text travel: reward.alignment=text"
    )
