"""The teacher's log-probs as the engine recorded them while sampling (`teacher_logprobs=rollout`).

A forward pass of the policy over all completions is saved. Rounding differs from a computation of
its own (other kernels, other batches): how much, the training measures (`rollout_gap_*` in
`train_steps`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlt_core.prompts.renderer import Context, Span

LOGPROBS = NDArray[np.float32]
Score = Callable[[Sequence[Sequence[int]], Sequence[Span]], list[LOGPROBS]]
"""Log-probs of one span of each sequence under the policy as it is now."""


@dataclass(frozen=True)
class Rollout:
    """A completion whose explanation is to be scored by its own teacher."""

    question_id: str
    context: Context
    """The teacher's: its prompt, then the explanation."""
    think_tokens: int
    """Of the explanation and the scored padding behind it, at the context's end."""
    completion: Sequence[int]
    sampled: LOGPROBS
    """As long as the completion."""

    @property
    def prefix(self) -> Span:
        """Scored tokens of the prompt: given, not sampled."""
        return Span(self.context.think.start, len(self.context.ids) - self.think_tokens)

    @property
    def as_sampled(self) -> bool:
        """The explanation is the completion's beginning, token by token; it is not where its last
        characters shared a token with the closing tag and were encoded anew."""
        ids = self.context.ids[self.prefix.end :]
        return ids == list(self.completion[: self.think_tokens])


def recorded_logprobs(rollouts: Sequence[Rollout], score: Score) -> list[LOGPROBS]:
    """Log-probs of each context's think span (T,).

    Computed by `score`, in one call: the scored prefix once a question (it follows from the prompt
    alone), and explanations that are not as sampled.
    """
    anew = [i for i, each in enumerate(rollouts) if not each.as_sampled]
    prefixed = {
        each.question_id: each
        for each in rollouts
        if each.as_sampled and each.think_tokens and each.prefix.start < each.prefix.end
    }
    contexts = [rollouts[i].context.ids for i in anew]
    spans = [rollouts[i].context.think for i in anew]
    for each in prefixed.values():
        contexts.append(each.context.ids[: each.prefix.end])
        spans.append(each.prefix)
    computed = score(contexts, spans)
    exact = dict(zip(anew, computed, strict=False))
    prefixes = dict(zip(prefixed, computed[len(anew) :], strict=True))
    nothing = np.empty(0, np.float32)
    logprobs = []
    for i, each in enumerate(rollouts):
        if not each.as_sampled:
            logprobs.append(exact[i])
            continue
        prefix = prefixes.get(each.question_id, nothing) if each.think_tokens else nothing
        logprobs.append(np.concatenate([prefix, each.sampled[: each.think_tokens]]))
    return logprobs
