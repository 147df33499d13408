"""evaluation: one model on the benchmarks that the config names."""

from __future__ import annotations

from typing import Any

from rlt_core.data.countdown import EVALUATION_QUESTIONS, EVALUATION_SEED, countdown_questions
from rlt_core.errors import UserError
from rlt_core.evaluation.adapter import run_tasks  # noqa: F401 (slow to import: preloaded here)
from rlt_core.evaluation.run import run_evaluation
from rlt_core.evaluation.tasks import EvalTask, benchmark_task
from rlt_core.hub import UNPINNED
from rlt_core.rows import read_rows
from rlt_core.stages import EvaluationStageConfig
from tasks.job import Job


def run(job: Job) -> dict[str, float]:
    """`test` are the data's held-out questions; the rest are benchmarks by name."""
    config = job.config_as(EvaluationStageConfig)
    return run_evaluation(
        job.model("model"),
        [_task(job, name, config) for name in config.evaluation.tasks],
        config.evaluation,
        format=config.format,
        key=job.spec.key,
        seed=job.seed,
        model_key=job.key("model"),
        label=job.spec.label.removeprefix("evaluation[").removesuffix("]"),
        out=job.out,
        work=job.work,
        resources=job.resources,
        control=job.control,
    )


def _task(job: Job, name: str, config: EvaluationStageConfig) -> EvalTask:
    if name == "countdown" and "countdown" in job.manifests:
        return EvalTask(name, _held_out(job, "countdown", "countdown.data.n_test"))
    if name == "countdown":
        return EvalTask(name, countdown_questions(EVALUATION_QUESTIONS, EVALUATION_SEED))
    if name != "test":
        commit = config.benchmarks.get(name)
        if commit == UNPINNED:
            raise UserError(f"benchmark {name}: run `rlt fetch` for this profile while online")
        return benchmark_task(name, config.evaluation.max_questions, commit)
    return EvalTask(name, _held_out(job, "questions", "data.n_test"))


def _held_out(job: Job, data_set: str, field: str) -> list[dict[str, Any]]:
    """The test questions of a data set. Raises UserError where it has none."""
    questions = read_rows(job.tables(data_set), "questions")
    held_out = [row for row in questions if row["split"] == "test"]
    if not held_out:
        raise UserError(
            f"{job.spec.name} asks held-out questions of {data_set}, and there are none; raise "
            f"{field}"
        )
    return held_out
