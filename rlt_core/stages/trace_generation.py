"""Traces sampled from a model."""

from __future__ import annotations

import operator
from typing import Literal

from pydantic import Field

from rlt_core.config import Frozen, GenerationConfig
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage


class TraceGenerationConfig(Frozen):
    """Explanations of the questions of one split."""

    sampling: GenerationConfig
    split: Literal["train", "validation"]
    context: Literal["teacher", "student"] = "teacher"
    """What the writer sees: question and solution, or the question alone; the trace is then the
    thought of its answer."""
    engine: str = Field(default="", exclude_if=operator.not_)
    """The user's own engine."""
    format: PromptFormat
    seed: int


STAGE = Stage(
    "trace-generation",
    version=2,
    kind="traces",
    config=TraceGenerationConfig,
    tables=("traces",),
    pool="gpu",
    shared="shards",
    tensor_parallel=True,
    sections=("trace_generation",),
    inputs={
        "teacher": "The model that writes the traces",
        "questions": "The questions to write traces for",
    },
    default_variant="rlt",
)
