"""teacher-grpo: RL of the teacher with the RLT reward."""

from __future__ import annotations

from rlt_core.rows import read_rows
from rlt_core.stages import TeacherGRPOStageConfig
from rlt_core.training.grpo import train_grpo
from rlt_core.training.reward_function import Prompt
from rlt_core.training.rlt_reward import RLTReward
from tasks.job import Job


def run(job: Job) -> dict[str, float]:
    """Trains on every training question with its solution."""
    config = job.config_as(TeacherGRPOStageConfig)
    model = job.model("model")
    renderer = job.renderer("model", "teacher")
    prompts = [
        Prompt(row["question_id"], renderer.teacher_prompt(row["question"], row["solution"]), row)
        for row in read_rows(job.tables("questions"), "questions")
        if row["split"] == "train"
    ]
    job.require_format("student", "student")
    reward = RLTReward(
        renderer,
        job.model("student"),
        config.reward,
        config.grpo,
        resources=job.resources,
    )
    return train_grpo(
        model,
        prompts,
        reward,
        config.grpo,
        seed=config.seed,
        key=job.spec.key,
        stage=job.spec.stage,
        out=job.out,
        work=job.work,
        resources=job.resources,
        progress=job.progress,
    )
