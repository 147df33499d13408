"""teacher-sft: the warm-up, question + solution → trace."""

from __future__ import annotations

from rlt_core.errors import UserError
from rlt_core.rows import read_rows
from rlt_core.stages import TeacherSFTStageConfig
from rlt_core.training.sft import train_sft
from tasks.job import Job


def run(job: Job) -> dict[str, float]:
    """Trains on every training question that has a trace; the solution is never used as one."""
    config = job.config_as(TeacherSFTStageConfig)
    model = job.model("model")
    renderer = job.renderer("model", "teacher")
    rows = [
        renderer.teacher_sft_row(row["question"], row["solution"], row["trace"])
        for row in read_rows(job.tables("questions"), "questions")
        if row["split"] == "train" and row["trace"]
    ]
    if not rows:
        raise UserError(
            "teacher-sft: the data has no traces to warm up on; map them (data.fields.trace, "
            "data.split_at), name a trace file (teacher_sft.traces=FILE), or go without "
            "(teacher_sft.traces=none)"
        )
    return train_sft(
        model,
        rows,
        config.sft,
        seed=config.seed,
        stage=job.spec.stage,
        out=job.out,
        work=job.work,
        resources=job.resources,
        progress=job.progress,
    )
