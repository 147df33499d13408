"""teacher-sft: the warm-up, question + solution → trace."""

from rlt_core.errors import UserError
from rlt_core.stages import TeacherSFTStageConfig
from rlt_core.training.sft import train_sft
from tasks.stage import StageContext


def run(ctx: StageContext) -> dict[str, float]:
    """Train on every training question that has a trace; the solution is never used as one."""
    config = ctx.config_as(TeacherSFTStageConfig)
    model = ctx.model("model")
    renderer = ctx.renderer("model", "teacher")
    rows = [
        renderer.teacher_sft_row(row["question"], row["solution"], row["trace"])
        for row in ctx.training_questions()
        if row["trace"]
    ]
    if not rows:
        raise UserError(
            "teacher-sft: the data has no traces to warm up on; map them (data.fields.trace, "
            "data.split_at), name a trace file (teacher_sft.traces=FILE), or go without "
            "(teacher_sft.traces=none)"
        )
    return train_sft(model, rows, config.sft, ctx.training(config.seed))
