"""The interface between GRPO and its reward: prompts and completions in, rewards out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from rlt_core.training.rollouts import LOGPROBS


@dataclass(frozen=True)
class Prompt:
    """A question as GRPO sees it."""

    question_id: str
    ids: list[int]
    """The whole prompt: chat template, and what is prefilled of the assistant's turn."""
    row: Mapping[str, Any]
    """Its row of `questions`."""


@dataclass(frozen=True)
class Rewards:
    """One value a completion, in the order of the completions."""

    rewards: list[float]
    parts: dict[str, list[float | None]]
    """Columns of `train_steps`: recorded is the mean over the step's completions that have a
    value."""


class NoReward(Exception):
    """A completion, by its place in the batch, has no finite reward."""

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(reason)
        self.place = place


class RewardFunction(Protocol):
    """Rewards of a whole batch of completions at once."""

    @property
    def stop_ids(self) -> Sequence[int]:
        """Tokens that end a completion."""

    @property
    def reads_policy(self) -> bool:
        """Whether it makes forward calls of the policy, which is gathered for it then."""

    def check(self, prompts: Sequence[Prompt], max_completion_tokens: int) -> None:
        """Raise UserError if some completion of these prompts could have no reward."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[int]],
        sampled: Sequence[LOGPROBS],
        policy: nn.Module,
    ) -> Rewards:
        """Rewards of `completions[i]`, which the current `policy` wrote to `prompts[i]` with
        log-probs `sampled[i]`. Completions of one question stand together. Raises NoReward."""
