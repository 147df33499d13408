"""trace-generation: a teacher's explanations or a solver's thoughts, `n` per question."""

from collections.abc import Sequence
from typing import Any

from rlt_core.data.trace_selection import choose
from rlt_core.generation import open_engine, sample_seed
from rlt_core.progress import Progress
from rlt_core.rows import read_rows
from rlt_core.stages import TraceGenerationConfig
from tasks.shards import in_shards
from tasks.stage import StageContext

Row = dict[str, Any]


def run(ctx: StageContext) -> dict[str, float]:
    """Derive a completion's seed from (key, question, sample), not from its place in a batch."""
    config = ctx.config_as(TraceGenerationConfig)
    model, sampling = ctx.model("teacher"), config.sampling
    renderer = ctx.renderer("teacher", config.context)
    solver = config.context == "student"
    questions = [row for row in ctx.rows("questions") if row["split"] == config.split]
    questions = choose(questions, sampling.n_questions, config.seed)

    def prompt(row: Row) -> list[int]:
        if solver:
            return renderer.student_prompt(row["question"])
        return renderer.teacher_prompt(row["question"], row["solution"])

    def compute(shard: Sequence[Row], progress: Progress) -> list[Row]:
        seeds = [
            [sample_seed(ctx.spec.key, row["question_id"], i) for i in range(sampling.n)]
            for row in shard
        ]
        prompts = [prompt(row) for row in shard]
        completions = engine.generate(prompts, sampling, seeds, renderer.stop_ids, progress)
        read = renderer.thought_of if solver else renderer.split_completion
        return [
            {
                "trace_id": f"{row['question_id']}-{sample}",
                "question_id": row["question_id"],
                "seed": ctx.seed,
                "teacher": ctx.key("teacher"),
                "sample": sample,
                "text": explanation.text,
                "token_ids": explanation.ids,
                "closed": explanation.closed,
                "completion_ids": completion.ids,
                "finish_reason": completion.finish_reason,
                "prompt_tokens": len(ids),
                "completion_tokens": len(completion.ids),
            }
            for row, ids, group in zip(shard, prompts, completions, strict=True)
            for sample, completion in enumerate(group)
            for explanation in [read(completion.ids)]
        ]

    with open_engine(model, sampling.dtype, ctx.resources) as engine:
        in_shards(
            ctx, "traces", questions, ctx.resources.shard_questions, compute,
            lambda row: len(row["question"]) + len(row["solution"]),
        )  # fmt: skip
    traces = read_rows(ctx.out, "traces", ["closed", "finish_reason", "completion_tokens"])
    return {
        "questions": len(questions),
        "traces": len(traces),
        "unclosed": sum(not trace["closed"] for trace in traces) / len(traces),
        "cut": sum(trace["finish_reason"] == "length" for trace in traces) / len(traces),
        "mean_tokens": sum(trace["completion_tokens"] for trace in traces) / len(traces),
    }
