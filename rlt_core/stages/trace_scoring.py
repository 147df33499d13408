"""Rewards of traces."""

from __future__ import annotations

import operator

from pydantic import Field

from rlt_core.config import Frozen, RewardSpec, ScoringConfig
from rlt_core.config.reward import off_policy_note
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage
from rlt_core.stages.cost import Cost


class TraceScoringConfig(Frozen):
    """Per-token log-probs, rewards and ranks of traces."""

    reward: RewardSpec
    scoring: ScoringConfig
    format: PromptFormat
    seed: int
    off_policy: str = Field(default="", exclude_if=operator.not_)
    """Why the traces are not samples of the scoring teacher; empty: they are."""

    @property
    def note(self) -> str:
        """The KL estimator of off-policy traces and its reason; empty for the teacher's own."""
        return off_policy_note(self.reward.kl, self.off_policy) if self.off_policy else ""


STAGE = Stage(
    "trace-scoring",
    version=4,
    kind="scores",
    config=TraceScoringConfig,
    tables=("scores",),
    pool="gpu",
    shared="shards",
    sections=("trace_scoring", "reward"),
    essentials=("max_tokens", "alpha", "kl_weight"),
    inputs={
        "traces": "The traces to score",
        "questions": "The questions of the traces",
        "teacher": "The teacher, whose context includes the solution",
        "student": "The student whose log-probs are the reward",
    },
    default_variant="rlt",
    cost=lambda config, inputs: Cost(config.scoring),
)
