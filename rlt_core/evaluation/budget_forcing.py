"""Budget forcing (s1, arXiv 2501.19393, section 3.1): make thinking longer or shorter.

A completion is sampled in phases. After each phase, either the end of thinking is replaced by a
continuation, or thinking that is too long is cut and the answer is requested; the next phase goes
on from there. A completion that opens no thought stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rlt_core.config import BudgetForcing

if TYPE_CHECKING:
    from rlt_core.generation.engine import FinishReason
    from rlt_core.prompts.renderer import Renderer


@dataclass(frozen=True)
class Draft:
    """A completion, finished or not."""

    ids: list[int]
    """Sampled and forced tokens so far."""
    max_new_tokens: int = 0
    """Tokens that the next phase may add; 0: it is finished."""
    continuations: int = 0
    """Number of times that an end of thinking was replaced."""
    answering: bool = False
    """Whether thinking is over; nothing is forced any more."""
    finish_reason: str = "length"
    """Finish reason of a finished completion; `too_long`: its prompt leaves no space."""


@dataclass(frozen=True)
class Forcer:
    """Decides after each phase how a completion goes on."""

    renderer: Renderer
    budget: BudgetForcing
    max_tokens: int
    """Limit for the whole completion, forced tokens included."""

    def first(self) -> Draft:
        """Return an empty draft. If thinking has a limit, the first phase ends shortly after it,
        for a model that opens its thought at once."""
        format = self.renderer.format
        opening = len((format.thought_open + format.padding).encode())
        return self._more(Draft([]), self._limit(opening))

    def after(self, draft: Draft, sampled: Sequence[int], finish_reason: FinishReason) -> Draft:
        """Return the draft with a phase's tokens; those beyond its limit do not count."""
        if len(sampled) > draft.max_new_tokens:
            finish_reason = "length"
        # Fewer tokens than allowed and no stop: the model's context is full.
        full = finish_reason == "length" and len(sampled) < draft.max_new_tokens
        ended = full or finish_reason == "stop"
        draft = replace(draft, ids=[*draft.ids, *sampled[: draft.max_new_tokens]])
        thinking = None if draft.answering else self.renderer.thinking_of(draft.ids)
        if thinking is None:
            return _finished(draft, finish_reason) if ended else self._more(draft)
        limit, length = self._limit(thinking.start), len(thinking.ids)
        if length > limit or (length == limit and not thinking.closed):
            kept = thinking.ids[:limit]
            if full:
                return _finished(replace(draft, ids=kept), finish_reason)
            return self._more(
                replace(draft, ids=[*kept, *self.renderer.to_solution(kept)], answering=True)
            )
        if draft.continuations < self.budget.continuations and (
            thinking.closed or finish_reason == "stop"
        ):
            longer = [*thinking.ids, *self.renderer.encode(self.budget.continuation)]
            if len(longer) < limit:  # else there is no space to think on, and the end stays
                continuations = draft.continuations + 1
                return self._more(replace(draft, ids=longer, continuations=continuations), limit)
        if ended:
            return _finished(draft, finish_reason)
        if thinking.closed:
            return self._more(replace(draft, answering=True))
        return self._more(draft, limit)

    def _limit(self, start: int) -> int:
        """Return the number of tokens allowed before the end of a thought that begins at
        `start`."""
        return min(self.max_tokens, start + (self.budget.max_thinking_tokens or self.max_tokens))

    def _more(self, draft: Draft, limit: int | None = None) -> Draft:
        """Return the draft with its limit for the next phase, which ends shortly after the
        thinking's `limit`: a closing tag that begins in time is read whole, and the forced one fits
        into the model's context where the sampled tokens did."""
        rest = self.max_tokens - len(draft.ids)
        if rest <= 0:
            return _finished(replace(draft, ids=draft.ids[: self.max_tokens]), "length")
        if limit is None:
            return replace(draft, max_new_tokens=rest)
        format = self.renderer.format
        closing = len((format.padding + format.thought_close).encode())
        margin = max(closing, len(self.renderer.to_solution([])) + 1)
        return replace(draft, max_new_tokens=min(rest, limit + margin - len(draft.ids)))


def _finished(draft: Draft, finish_reason: FinishReason) -> Draft:
    return replace(draft, max_new_tokens=0, finish_reason=finish_reason)
