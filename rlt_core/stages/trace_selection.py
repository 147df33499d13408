"""The best explanations for a student."""

from rlt_core.config import Frozen, TraceSelectionConfig
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage
from rlt_core.stages.cost import Cost, Inputs, Traces


class TraceSelectionStageConfig(Frozen):
    """Traces that are kept as training data."""

    selection: TraceSelectionConfig
    format: PromptFormat


def _cost(config: TraceSelectionStageConfig, inputs: Inputs) -> Cost:
    traces = inputs.traces
    kept = traces.questions * config.selection.keep
    return Cost(
        makes=inputs.written(Traces(min(kept, traces.count), traces.questions, traces.tokens))
    )


STAGE = Stage(
    "trace-selection",
    version=1,
    kind="traces",
    config=TraceSelectionStageConfig,
    tables=("traces", "dropped"),
    sections=("trace_selection",),
    essentials=("keep", "only_correct", "max_student_tokens"),
    inputs={
        "traces": "The traces to choose from",
        "scores": "Their scores",
        "questions": "The questions of the traces",
        "student": "The model that will learn from them, whose context they must fit",
    },
    cost=_cost,
)
