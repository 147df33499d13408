"""Traces from a file or from the data set."""

from collections.abc import Mapping

from rlt_core.config import Frozen
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage
from rlt_core.stages.cost import Cost, Inputs, Traces


class TraceImportConfig(Frozen):
    """Traces that others wrote: a file by its content, or the data set's own."""

    name: str
    digest: str | None
    """Digest of the file; empty: the traces in the table `questions` of the input."""
    max_dropped: float = 0.05
    """Share of the file's rows that may be unusable."""
    format: PromptFormat


def _cost(config: TraceImportConfig, inputs: Inputs) -> Cost:
    if config.digest:
        return Cost(makes=inputs.written())
    own = inputs.questions
    return Cost(makes=inputs.written(Traces(own.with_trace, own.with_trace, own.trace)))


def _check(config: TraceImportConfig, paths: Mapping[str, str]) -> None:
    from rlt_core.data.sources import check_file, trace_file

    if "source" in paths:
        check_file(trace_file(paths["source"], config.max_dropped), config.format, traces=True)


STAGE = Stage(
    "trace-import",
    version=2,
    kind="traces",
    config=TraceImportConfig,
    tables=("traces", "questions", "dropped"),
    sections=("imports",),
    essentials=("traces",),
    inputs={
        "tokenizer": "The base model whose tokenizer reads the traces",
        "questions": "The data set whose own traces are imported",
    },
    cost=_cost,
    check=_check,
)
