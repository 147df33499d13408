"""trace-import: traces that others wrote → the tables `traces`, `questions` and `dropped`."""

from __future__ import annotations

from pathlib import Path

from rlt_core.data.traces import import_traces, own_traces
from rlt_core.rows import read_rows
from rlt_core.stages import TraceImportConfig
from tasks.job import Job


def run(job: Job) -> dict[str, float]:
    """Their text becomes ids of the base model's tokenizer."""
    config = job.config_as(TraceImportConfig)
    renderer = job.renderer("tokenizer")
    if config.digest is None:
        questions = read_rows(job.tables("questions"), "questions")
        return own_traces(questions, config.name, renderer, job.out)
    path = Path(job.spec.paths["source"])
    return import_traces(path, config.name, renderer, job.out, config.max_dropped, job.progress)
