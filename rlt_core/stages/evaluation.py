"""Benchmarks of a model."""

from __future__ import annotations

import operator

from pydantic import Field

from rlt_core.config import DataConfig, EvaluationConfig, Frozen
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage


class EvaluationStageConfig(Frozen):
    """Benchmarks of one model."""

    evaluation: EvaluationConfig
    benchmarks: dict[str, str]
    """Task name -> commit of its data set on the hub."""
    own_benchmarks: dict[str, DataConfig] = Field(default={}, exclude_if=operator.not_)
    """Task name -> the user's own benchmark, by its content."""
    engine: str = Field(default="", exclude_if=operator.not_)
    """The user's own engine."""
    format: PromptFormat
    format_named: bool = False
    """The user named this format for the model (`imports.models.NAME.format`); the model may then
    record another one."""
    seed: int


STAGE = Stage(
    "evaluation",
    version=2,
    kind="evaluation",
    config=EvaluationStageConfig,
    tables=("eval_samples", "eval_scores"),
    pool="gpu",
    shared="shards",
    tensor_parallel=True,
    sections=("evaluation",),
    inputs={
        "model": "The model to test",
        "questions": "The held-out questions",
        "countdown": "The data set of the task countdown",
    },
    default_variant="rlt",
)
