"""Traces sampled from a model."""

import operator
from typing import Literal

from pydantic import Field

from rlt_core.config import Frozen, GenerationConfig
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage
from rlt_core.stages.cost import Cost, Inputs, SamplingWork, Traces


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


def _cost(config: TraceGenerationConfig, inputs: Inputs) -> Cost:
    sampling, questions = config.sampling, inputs.questions
    there = questions.train if config.split == "train" else questions.validation
    asked = min(there, sampling.n_questions or there)
    tokens = inputs.completion(sampling.max_tokens)
    traces = inputs.written(Traces(asked * sampling.n, asked, tokens))
    teacher = config.context == "teacher"
    prompt = questions.teacher_prompt if teacher else questions.student_prompt
    return Cost(SamplingWork(sampling, ((traces.count, prompt, traces.tokens),)), traces)


STAGE = Stage(
    "trace-generation",
    version=2,
    kind="traces",
    config=TraceGenerationConfig,
    tables=("traces",),
    pool="gpu",
    spends="completions",
    shared="shards",
    tensor_parallel=True,
    sections=("trace_generation",),
    essentials=("n", "n_questions", "temperature", "max_tokens"),
    inputs={
        "teacher": "The model that writes the traces",
        "questions": "The questions to write traces for",
    },
    default_variant="rlt",
    cost=_cost,
)
