"""Traces from a file or from the data set."""

from __future__ import annotations

from rlt_core.config import Frozen
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage


class TraceImportConfig(Frozen):
    """Traces that others wrote: a file by its content, or the data set's own."""

    name: str
    digest: str | None
    """Digest of the file; empty: the traces in the table `questions` of the input."""
    max_dropped: float = 0.05
    """Share of the file's rows that may be unusable."""
    format: PromptFormat


STAGE = Stage(
    "trace-import",
    version=2,
    kind="traces",
    config=TraceImportConfig,
    tables=("traces", "questions", "dropped"),
    sections=("imports",),
    inputs={
        "tokenizer": "The base model whose tokenizer reads the traces",
        "questions": "The data set whose own traces are imported",
    },
)
