"""The interface between GRPO and its reward: prompts and completions in, rewards out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from rlt_core.generation import Completion


@dataclass(frozen=True)
class Prompt:
    """A question as GRPO sees it."""

    question_id: str
    ids: list[int]
    """The whole prompt: the chat, and the prefilled beginning of the assistant's turn."""
    row: Mapping[str, Any]
    """Its row of `questions`."""


class NoReward(RuntimeError):
    """A completion has no finite reward."""


@dataclass(frozen=True)
class Rewards:
    """Rewards of a batch, in the order of the completions."""

    rewards: list[float]
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Further columns of each completion: those of `rollouts`, and those of `train_steps`, which
    records the mean over a step's completions with a value."""


class RewardFunction:
    """Computes the rewards of a whole batch of completions."""

    stop_ids: Sequence[int]
    """Tokens that end a completion."""
    reads_policy = False
    """Whether it runs the policy, which is then gathered for it."""

    def check(self, prompts: Sequence[Prompt], max_completion_tokens: int) -> None:
        """Raise UserError if some completion of these prompts could have no reward."""

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], policy: nn.Module
    ) -> Rewards:
        """Return the reward of `completions[i]`, sampled by the current `policy` from `prompts[i]`.
        Completions of a question follow one another. Raises NoReward for one that has none.
        """
        raise NotImplementedError
