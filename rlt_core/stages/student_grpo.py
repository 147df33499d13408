"""Reinforcement learning of a student."""

from rlt_core.config import Frozen, StudentGRPOConfig
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage
from rlt_core.stages.cost import Cost, TrainingWork


class StudentGRPOStageConfig(Frozen):
    """RL cold-start on answer correctness."""

    grpo: StudentGRPOConfig
    format: PromptFormat
    seed: int


STAGE = Stage(
    "student-grpo",
    version=2,
    kind="model",
    config=StudentGRPOStageConfig,
    tables=("train_steps", "rollouts"),
    model=True,
    pool="gpu",
    shared="steps",
    rollouts=True,
    sections=("student_grpo",),
    essentials=(
        "steps",
        "learning_rate",
        "questions_per_step",
        "group_size",
        "max_completion_tokens",
    ),
    inputs={"model": "The student to start from", "questions": "The training questions"},
    default_variant="rlt",
    cost=lambda config, inputs: Cost(
        TrainingWork(config.grpo, inputs.questions.train, inputs.questions.student_prompt)
    ),
)
