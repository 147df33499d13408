"""evaluation: one model on the benchmarks that the config names."""

import shutil
from typing import Any

from rlt_core import processes
from rlt_core.errors import UserError
from rlt_core.evaluation.benchmarks import EvalTask, benchmark_task, own_task
from rlt_core.evaluation.run import ModelEvaluation
from rlt_core.rows import read_rows
from rlt_core.stages import EvaluationStageConfig
from tasks.shards import LongWork, in_shards
from tasks.stage import StageContext

if processes.rank() == 0:
    import rlt_core.evaluation.adapter  # noqa: F401 (slow to import: preloaded where it runs)


def run(ctx: StageContext) -> dict[str, float]:
    """Evaluate on the benchmarks named; `test` is the data's held-out questions."""
    config = ctx.config_as(EvaluationStageConfig)
    ctx.require_format("model", "student")
    evaluation = ModelEvaluation(
        ctx.model("model"),
        [_task(ctx, name, config) for name in config.evaluation.tasks],
        config.evaluation,
        format=ctx.format,
        key=ctx.spec.key,
        seed=ctx.seed,
        model_key=ctx.key("model"),
        label=ctx.spec.label.removeprefix("evaluation[").removesuffix("]"),
        resources=ctx.resources,
    )
    return examine(ctx, evaluation, ctx.resources.shard_questions)


def examine(work: LongWork, evaluation: ModelEvaluation, shard_questions: int) -> dict[str, float]:
    """Sample completions in shards, which other processes and machines share. The first process
    grades them and has lighteval score them, and returns the metrics."""

    def answer() -> list[dict[str, Any]]:
        in_shards(
            work, "eval_samples", evaluation.requests, shard_questions, evaluation.complete,
            lambda request: len(request.prompt_ids),
        )  # fmt: skip
        if processes.rank():
            return []
        rows = read_rows(work.out, "eval_samples")
        shutil.rmtree(work.out / "eval_samples")  # one file, however it was shared
        return rows

    with evaluation:
        if processes.rank() or work.machine:
            answer()
            return {}
        return evaluation.run(answer, work.out, work.progress)


def _task(ctx: StageContext, name: str, config: EvaluationStageConfig) -> EvalTask:
    if name == "countdown" and "countdown" in ctx.manifests:
        return EvalTask(name, _held_out(ctx, "countdown", "countdown.data.n_test"))
    if name == "test":
        return EvalTask(name, _held_out(ctx, "questions", "data.n_test"))
    if own := config.own_benchmarks.get(name):
        return own_task(name, own.located(ctx.spec.paths))
    evaluation = config.evaluation
    commit = config.benchmarks.get(name)
    return benchmark_task(name, evaluation.max_questions, commit, evaluation.prompts)


def _held_out(ctx: StageContext, data_set: str, field: str) -> list[dict[str, Any]]:
    """Test questions of a data set. Raises UserError if it has none."""
    held_out = [row for row in ctx.rows(data_set, "questions") if row["split"] == "test"]
    if not held_out:
        raise UserError(
            f"{ctx.spec.name} asks held-out questions of {data_set}, and there are none; raise "
            f"{field}"
        )
    return held_out
