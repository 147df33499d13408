"""Traces rewritten by an LLM."""

from __future__ import annotations

from rlt_core.config import Frozen
from rlt_core.config.refinement import RefinementConfig
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage


class TraceRefinementConfig(Frozen):
    """Traces that an LLM rewrites."""

    refinement: RefinementConfig
    format: PromptFormat


STAGE = Stage(
    "trace-refinement",
    version=2,
    kind="traces",
    config=TraceRefinementConfig,
    tables=("traces", "dropped"),
    sections=("trace_refinement",),
    inputs={
        "traces": "The traces to refine",
        "questions": "The questions of the traces",
        "tokenizer": "The base model whose tokenizer reads the traces",
    },
)
