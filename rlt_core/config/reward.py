"""Rewards of the teacher and of the student."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlt_core.config.base import Frozen, OwnReward

Reduction = Literal["mean", "min", "max", "median", "sum"]
KLEstimator = Literal["k1", "k3", "full"]


class RewardSpec(Frozen):
    """The RLT reward (arXiv 2506.08388, eq. 3-5): r = r_SS - lambda * r_KL + penalty.

    Written as `paper` or `reference-code`, it is that preset (`REWARD_PRESETS`).
    """

    alpha: float = 0.01
    """Weight of the worst token: min in r_SS, max in r_KL."""
    kl_weight: float = 3.0
    """Lambda."""
    temperature: float = Field(default=0.7, gt=0)
    """Logits are divided by it before the log-softmax, for student and teacher alike."""
    kl: KLEstimator = "k1"
    """KL of teacher and student at a token of the explanation: from the token's log-probs alone,
    log-ratio (`k1`) or Schulman's estimate that is never negative (`k3`), or over the whole
    vocabulary (`full`, which costs a second pass through both output embeddings)."""
    solution_reduction: Reduction = "mean"
    """Reduction of the student's log-probs of the solution's tokens: the main part of r_SS."""
    solution_extreme: Reduction = "min"
    """Reduction of the same log-probs: the part of r_SS that `alpha` weighs."""
    think_reduction: Reduction = "mean"
    """Reduction of the teacher-student KL at the explanation's tokens: the main part of r_KL."""
    think_extreme: Reduction = "max"
    """Reduction of the same KL: the part of r_KL that `alpha` weighs."""
    clip_logprob: float | None = Field(default=None, gt=0)
    """Log-probs of solution tokens are clipped at minus this; empty: not clipped."""
    clip_kl: float | None = Field(default=None, gt=0)
    """The KL of each token is clipped at this; empty: not clipped."""
    unclosed_penalty: float = -1.0
    """Added when the end-of-explanation tag is missing."""
    empty_think_kl: float = 1.0
    """Value of each KL reduction for an empty explanation, before coefficients."""
    alignment: Literal["ids", "text"] = Field(default="ids", exclude_if=lambda how: how == "ids")
    """How an explanation gets from teacher to student: as token `ids`, which needs one vocabulary,
    or as `text`, for any two models. With two tokenizers, k_t is that of the spans of text that
    both have."""
    function: OwnReward | None = Field(default=None, exclude_if=lambda path: path is None)
    """`module:function` of your own that returns the reward in place of eq. 5; its arguments are
    the parts of the paper's reward and the log-probs."""

    @model_validator(mode="after")
    def _one_vocabulary_of_full(self) -> RewardSpec:
        if self.alignment == "text" and self.kl == "full":
            raise ValueError("kl=full compares whole vocabularies: it needs alignment=ids")
        return self

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value not in REWARD_PRESETS:
            raise ValueError(f"write one of the presets {', '.join(REWARD_PRESETS)}, or fields")
        return REWARD_PRESETS[value].model_dump()


REWARD_PRESETS: dict[str, RewardSpec] = {
    "paper": RewardSpec(),
    "reference-code": RewardSpec(clip_logprob=1e5, clip_kl=1e5),
}
"""Where the paper gives no number (alpha, lambda, temperature, penalty of an unclosed explanation,
KL of an empty one), both have those of the authors' code. That code also clips at 1e5, which no
real log-prob reaches, and scores line breaks inside the tags where they are tokens of their own:
`score_padding` of the prompt format."""


def off_policy_note(kl: KLEstimator, reason: str) -> str:
    """Return one line on the KL estimator of explanations that the teacher did not sample."""
    if kl == "k1":
        return (
            f"warning: r_KL by k1 of explanations that are not the teacher's samples ({reason}): "
            "there it is unbounded below and -lambda * r_KL rewards what the teacher finds "
            "unlikely; full is the default"
        )
    return f"r_KL by {kl}: the explanations are not the teacher's samples ({reason})"


class CorrectnessReward(Frozen):
    """Reward of the RL cold-start (paper section 2.1)."""

    unformatted: float = -1.0
    """Reward of a completion without the format's tags."""
    wrong: float = -0.5
    """Reward of a well-formed wrong answer."""
    correct: float = 1.0
    """Reward of the right answer."""
