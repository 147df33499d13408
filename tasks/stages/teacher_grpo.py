"""teacher-grpo: RL of the teacher with the RLT reward."""

from rlt_core.stages import TeacherGRPOStageConfig
from rlt_core.training.grpo import train_grpo
from rlt_core.training.reward_function import Prompt
from rlt_core.training.rlt_reward import RLTReward
from tasks.stage import StageContext


def run(ctx: StageContext) -> dict[str, float]:
    """Train on every training question with its solution."""
    config = ctx.config_as(TeacherGRPOStageConfig)
    model = ctx.model("model")
    renderer = ctx.renderer("model", "teacher")
    prompts = [
        Prompt(row["question_id"], renderer.teacher_prompt(row["question"], row["solution"]), row)
        for row in ctx.training_questions()
    ]
    ctx.require_format("student", "student")
    reward = RLTReward(
        renderer, ctx.model("student"), config.reward, config.grpo, resources=ctx.resources
    )
    return train_grpo(model, prompts, reward, config.grpo, ctx.spec.key, ctx.training(config.seed))
