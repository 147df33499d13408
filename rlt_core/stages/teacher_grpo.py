"""Reinforcement learning of the teacher."""

from __future__ import annotations

from pydantic import model_validator

from rlt_core.config import Frozen, RewardSpec, TeacherGRPOConfig
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage
from rlt_core.stages.cost import Cost, TrainingWork


class TeacherGRPOStageConfig(Frozen):
    """RL of the teacher with the RLT reward."""

    grpo: TeacherGRPOConfig
    reward: RewardSpec
    format: PromptFormat
    seed: int

    @model_validator(mode="after")
    def _consistent(self) -> TeacherGRPOStageConfig:
        self.grpo.check_against(self.reward)
        return self


STAGE = Stage(
    "teacher-grpo",
    version=3,
    kind="model",
    config=TeacherGRPOStageConfig,
    tables=("train_steps", "rollouts"),
    model=True,
    pool="gpu",
    shared="steps",
    rollouts=True,
    sections=("teacher_grpo", "reward"),
    essentials=("steps", "learning_rate", "questions_per_step", "group_size", "alpha", "kl_weight"),
    inputs={
        "model": "The teacher to start from",
        "student": "The frozen student whose log-probs are the reward",
        "questions": "The training questions",
    },
    cost=lambda config, inputs: Cost(
        TrainingWork(config.grpo, inputs.questions.train, inputs.questions.teacher_prompt)
    ),
)
