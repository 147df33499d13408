"""student-grpo: RL on answer correctness, started from a distilled student."""

from rlt_core.errors import UserError
from rlt_core.grading import Grader, has_answer
from rlt_core.stages import StudentGRPOStageConfig
from rlt_core.training.answer_reward import AnswerReward
from rlt_core.training.grpo import train_grpo
from rlt_core.training.reward_function import Prompt
from tasks.stage import StageContext


def run(ctx: StageContext) -> dict[str, float]:
    """Train on the training questions whose answers can be graded; count the others."""
    config = ctx.config_as(StudentGRPOStageConfig)
    model = ctx.model("model")
    renderer = ctx.renderer("model", "student")
    rows = ctx.training_questions()
    gradable = [row for row in rows if has_answer(row)]
    if not gradable:
        raise UserError(
            "student-grpo: no training question has an answer to grade with; map "
            "data.fields.answer, or go without (student_grpo=null)"
        )
    prompts = [
        Prompt(row["question_id"], renderer.student_prompt(row["question"]), row)
        for row in gradable
    ]
    with Grader() as grader:
        reward = AnswerReward(renderer, config.grpo.reward, grader)
        metrics = train_grpo(
            model, prompts, reward, config.grpo, ctx.spec.key, ctx.training(config.seed)
        )
    return {**metrics, "ungradable_questions": len(rows) - len(gradable)}
