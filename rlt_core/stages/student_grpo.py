"""Reinforcement learning of a student."""

from __future__ import annotations

from rlt_core.config import Frozen, StudentGRPOConfig
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage


class StudentGRPOStageConfig(Frozen):
    """RL cold-start on answer correctness."""

    grpo: StudentGRPOConfig
    format: PromptFormat
    seed: int


STAGE = Stage(
    "student-grpo",
    version=2,
    kind="model",
    config=StudentGRPOStageConfig,
    tables=("train_steps",),
    model=True,
    pool="gpu",
    shared="steps",
    rollouts=True,
    sections=("student_grpo",),
    inputs={"model": "The student to start from", "questions": "The training questions"},
    default_variant="rlt",
)
