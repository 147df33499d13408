"""Explanations by an LLM."""

from rlt_core.config import Frozen
from rlt_core.config.endpoint import EndpointTeacherConfig
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage
from rlt_core.stages.cost import Cost, Inputs, Traces, requests


class EndpointGenerationConfig(Frozen):
    """Explanations of the training questions."""

    teacher: EndpointTeacherConfig
    format: PromptFormat
    seed: int


def _cost(config: EndpointGenerationConfig, inputs: Inputs) -> Cost:
    questions, teacher = inputs.questions, config.teacher
    asked = min(questions.train, teacher.n_questions or questions.train)
    work = requests(teacher, asked * teacher.n, questions.question + questions.solution, inputs)
    return Cost(work, inputs.written(Traces(work.count, asked, work.completion)))


STAGE = Stage(
    "endpoint-generation",
    version=1,
    kind="traces",
    config=EndpointGenerationConfig,
    tables=("traces", "dropped"),
    spends="requests",
    sections=("endpoint_teacher",),
    essentials=("model", "n", "n_questions", "template", "temperature", "max_tokens"),
    inputs={
        "questions": "The questions to explain",
        "tokenizer": "The base model whose tokenizer reads the traces",
    },
    cost=_cost,
)
