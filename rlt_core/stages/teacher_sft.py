"""Supervised warm-up of the teacher."""

from rlt_core.config import Frozen, SFTConfig
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage
from rlt_core.stages.cost import Cost, Inputs, TrainingWork


class TeacherSFTStageConfig(Frozen):
    """Question + solution -> trace."""

    sft: SFTConfig
    format: PromptFormat
    seed: int


def _cost(config: TeacherSFTStageConfig, inputs: Inputs) -> Cost:
    questions = inputs.questions
    row = questions.teacher_prompt + questions.trace
    return Cost(TrainingWork(config.sft, questions.with_trace, row))


STAGE = Stage(
    "teacher-sft",
    version=2,
    kind="model",
    config=TeacherSFTStageConfig,
    tables=("train_steps",),
    model=True,
    pool="gpu",
    shared="steps",
    sections=("teacher_sft",),
    essentials=("traces", "epochs", "steps", "learning_rate", "batch_size"),
    inputs={"model": "The base model", "questions": "Questions with traces"},
    cost=_cost,
)
