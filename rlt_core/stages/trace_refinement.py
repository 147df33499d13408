"""Traces rewritten by an LLM."""

from rlt_core.config import Frozen
from rlt_core.config.endpoint import RefinementConfig
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage
from rlt_core.stages.cost import Cost, Inputs, requests


class TraceRefinementConfig(Frozen):
    """Traces that an LLM rewrites."""

    refinement: RefinementConfig
    format: PromptFormat


def _cost(config: TraceRefinementConfig, inputs: Inputs) -> Cost:
    questions, traces = inputs.questions, inputs.traces
    texts = questions.question + questions.solution + traces.tokens
    work = requests(config.refinement, traces.count, texts, inputs)
    return Cost(work, inputs.written(traces))


STAGE = Stage(
    "trace-refinement",
    version=2,
    kind="traces",
    config=TraceRefinementConfig,
    tables=("traces", "dropped"),
    spends="requests",
    sections=("trace_refinement",),
    essentials=("model", "template", "temperature", "max_tokens"),
    inputs={
        "traces": "The traces to refine",
        "questions": "The questions of the traces",
        "tokenizer": "The base model whose tokenizer reads the traces",
    },
    cost=_cost,
)
