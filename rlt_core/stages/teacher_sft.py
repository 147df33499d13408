"""Supervised warm-up of the teacher."""

from __future__ import annotations

from rlt_core.config import Frozen, SFTConfig
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage


class TeacherSFTStageConfig(Frozen):
    """Question + solution -> trace."""

    sft: SFTConfig
    format: PromptFormat
    seed: int


STAGE = Stage(
    "teacher-sft",
    version=2,
    kind="model",
    config=TeacherSFTStageConfig,
    tables=("train_steps",),
    model=True,
    pool="gpu",
    shared="steps",
    sections=("teacher_sft",),
    inputs={"model": "The base model", "questions": "Questions with traces"},
)
