"""Budget forcing (s1, arXiv 2501.19393, section 3.1): thinking made longer or shorter.

A completion is drawn in phases. After each, what was drawn is looked at by ids: an end of thinking
is taken back and a continuation written in its place, or thinking that is too long is cut and the
answer asked for; the next phase goes on from there. A completion that opens no thought is left as
it is.
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
    """A completion under way."""

    ids: list[int]
    """Sampled and forced tokens so far."""
    room: int = 0
    """Tokens that the next phase may add; none: it is finished."""
    continuations: int = 0
    """Ends of thinking that were taken back."""
    answering: bool = False
    """Its thinking is over, nothing is forced any more."""
    finish_reason: FinishReason = "length"
    """Of a finished one."""


@dataclass(frozen=True)
class Forcer:
    """What becomes of a completion after each phase."""

    renderer: Renderer
    budget: BudgetForcing
    max_tokens: int
    """Of a whole completion, forced tokens included."""

    def first(self) -> Draft:
        """Nothing written. If thinking has a limit, the first phase leaves off a little behind
        it, for a model that opens its thought at once."""
        format = self.renderer.format
        opening = len((format.thought_open + format.padding).encode())
        return self._more(Draft([]), self._limit(opening))

    def after(self, draft: Draft, sampled: Sequence[int], finish_reason: FinishReason) -> Draft:
        """The draft with what a phase sampled; tokens beyond its room do not count."""
        if len(sampled) > draft.room:
            finish_reason = "length"
        # Less than its room and no stop: the engine has come to the end of the model's context.
        full = finish_reason == "length" and len(sampled) < draft.room
        ended = full or finish_reason == "stop"
        draft = replace(draft, ids=[*draft.ids, *sampled[: draft.room]])
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
            if len(longer) < limit:  # else there is no room to think on, and the end stands
                continuations = draft.continuations + 1
                return self._more(replace(draft, ids=longer, continuations=continuations), limit)
        if ended:
            return _finished(draft, finish_reason)
        if thinking.closed:
            return self._more(replace(draft, answering=True))
        return self._more(draft, limit)

    def _limit(self, start: int) -> int:
        """Tokens that may stand before the end of a thought that begins at `start`."""
        return min(self.max_tokens, start + (self.budget.max_thinking_tokens or self.max_tokens))

    def _more(self, draft: Draft, limit: int | None = None) -> Draft:
        """The draft with room for another phase, which leaves off a little behind the thinking's
        `limit`: a closing tag that begins in time is read whole, and the forced one finds room in
        the model's context where the sampled tokens did."""
        rest = self.max_tokens - len(draft.ids)
        if rest <= 0:
            return _finished(replace(draft, ids=draft.ids[: self.max_tokens]), "length")
        if limit is None:
            return replace(draft, room=rest)
        format = self.renderer.format
        closing = len((format.padding + format.thought_close).encode())
        margin = max(closing, len(self.renderer.to_solution([])) + 1)
        return replace(draft, room=min(rest, limit + margin - len(draft.ids)))


def _finished(draft: Draft, finish_reason: FinishReason) -> Draft:
    return replace(draft, room=0, finish_reason=finish_reason)
