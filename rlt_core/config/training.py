"""SFT and GRPO."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlt_core.config.base import Decay, DType, Fraction, Frozen, Positive, Probability
from rlt_core.config.reward import CorrectnessReward, RewardSpec
from rlt_core.errors import UserError


class LoRA(Frozen):
    """Low-rank adapters instead of full fine-tuning; merged into the artifact."""

    rank: Positive = 16
    """Rank of the adapters."""
    alpha: Positive = 32
    """The adapters' output is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Share of the adapters' inputs that training drops."""


class Optimizer(Frozen):
    """AdamW, its schedule, and how long it trains which weights."""

    learning_rate: float = Field(gt=0)
    """Peak of AdamW's learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Learning-rate schedule after the warm-up."""
    warmup_ratio: Fraction = 0.0
    """Fraction of the steps in which the learning rate rises to its peak."""
    beta1: Decay = 0.9
    """AdamW's decay of the gradients' mean."""
    beta2: Decay = 0.999
    """AdamW's decay of the gradients' mean square."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the rows or questions; give either this or `steps`."""
    steps: Positive | None = None
    """Optimiser steps; give either this or `epochs`."""
    dtype: DType = "float32"
    """Number format of the weights in training, and of the saved model; a CPU that cannot multiply
    bfloat16 computes in float32."""
    lora: LoRA | None = None
    """Train low-rank adapters; empty: all weights."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        return self


class SFTConfig(Optimizer):
    """Supervised fine-tuning on token ids."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak of AdamW's learning rate."""
    batch_size: Positive = 16
    """Sequences per step, over all devices and micro-batches."""
    max_tokens: Positive = 16384
    """Longer rows are dropped and counted, never cut."""


class TeacherSFTConfig(SFTConfig):
    """Warm-up of the teacher: question + solution -> trace."""

    traces: str = "dataset"
    """`dataset` (the data's own traces), `none` (no warm-up), or a trace file."""


class StudentSFTConfig(SFTConfig):
    """Distillation of a student on traces."""

    n_questions: Positive | None = None
    """Number of questions whose traces are learned from, chosen by the seed (the paper's 1K)."""


class ReferenceSync(Frozen):
    """reference <- alpha * policy + (1 - alpha) * reference, every so many steps."""

    every_steps: Positive = 32
    """Optimiser steps between two updates of the reference."""
    alpha: Fraction = 0.9
    """Share of the policy in the new reference."""


class GRPOConfig(Optimizer):
    """Group Relative Policy Optimisation, strictly on-policy, loss type `grpo`."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak of AdamW's learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning-rate schedule after the warm-up."""
    questions_per_step: Positive = 16
    """Questions per step, each with `group_size` completions."""
    group_size: Annotated[int, Field(ge=2)] = 64
    """Completions per question; advantages are relative to their mean."""
    beta: float = Field(default=0.04, ge=0)
    """Weight of the KL penalty (k3) towards the reference model."""
    temperature: float = Field(default=0.7, gt=0)
    """Temperature of sampling, and of the policy's and reference's log-probs."""
    top_p: Probability = 1.0
    """Sample among the likeliest tokens that make up this probability."""
    max_prompt_tokens: Positive = 16384
    """Questions with a longer prompt are dropped and counted."""
    max_completion_tokens: Positive = 16384
    """Maximum number of new tokens per completion."""
    reference_sync: ReferenceSync | None = None
    """Let the reference model follow the policy; empty: it stays as it was at the start."""

    @model_validator(mode="after")
    def _consistent(self) -> GRPOConfig:
        if self.lora and self.reference_sync:
            raise ValueError(
                "lora and reference_sync exclude each other: with adapters the reference model "
                "is the frozen base; set reference_sync=null"
            )
        if self.lora and self.lora.dropout:
            raise ValueError(
                "GRPO trains without dropout, which would make log-probs differ from call to call; "
                "set lora.dropout=0"
            )
        return self


class TeacherGRPOConfig(GRPOConfig):
    """RL of the teacher on the RLT reward."""

    teacher_logprobs: Literal["exact", "rollout"] = "exact"
    """The teacher's log-probs in the reward: computed again from the policy (`exact`), or recorded
    by the engine while sampling (`rollout`: saves a forward pass; needs the reward's temperature,
    top_p 1 and reward.kl other than `full`; the difference is in `train_steps`)."""

    def check_against(self, reward: RewardSpec) -> None:
        """Raise UserError if the log-probs that the engine records are not those of the reward."""
        same = self.temperature == reward.temperature and self.top_p == 1 and reward.kl != "full"
        if self.teacher_logprobs == "rollout" and not same:
            raise UserError(
                "teacher_grpo.teacher_logprobs=rollout takes log-probs as they were recorded in "
                "sampling: set teacher_grpo.temperature and reward.temperature to the same value, "
                "teacher_grpo.top_p to 1 and reward.kl to k1 or k3, or set "
                "teacher_grpo.teacher_logprobs=exact"
            )


class StudentGRPOConfig(GRPOConfig):
    """RL cold-start: GRPO on answer correctness, from a distilled student."""

    reward: CorrectnessReward = CorrectnessReward()
    """Reward of an answer."""
