"""Benchmarks of a model."""

import operator

from pydantic import Field

from rlt_core.config import DataConfig, EvaluationConfig, Frozen
from rlt_core.data.generators.countdown import EVALUATION_QUESTIONS
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage
from rlt_core.stages.cost import Cost, Inputs, SamplingWork

TASKS = {"aime24": 30, "math_500": 500, "gpqa_diamond": 198, "countdown": EVALUATION_QUESTIONS}
"""Questions of evaluation sets."""


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


def _cost(config: EvaluationStageConfig, inputs: Inputs) -> Cost:
    evaluation, prompt = config.evaluation, inputs.questions.student_prompt
    completion, asked = inputs.completion(evaluation.max_tokens), []
    for task in evaluation.tasks:
        data_set = (task == "countdown" and inputs.data_set(task)) or None
        count = data_set.test if data_set else TASKS.get(task, inputs.questions.test)
        count = min(count, evaluation.max_questions or count)
        tokens = data_set.student_prompt if data_set else prompt
        asked.append((count * evaluation.samples_of(task), tokens, completion))
    return Cost(SamplingWork(evaluation, tuple(asked)))


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
    essentials=("tasks", "n", "temperature", "max_tokens", "max_questions"),
    inputs={
        "model": "The model to test",
        "questions": "The held-out questions",
        "countdown": "The data set of the task countdown",
    },
    default_variant="rlt",
    cost=_cost,
)
