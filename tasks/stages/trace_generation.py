"""trace-generation: a teacher's explanations or a solver's thoughts, `n` per question."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlt_core.data.trace_selection import choose
from rlt_core.generation import open_engine, sample_seed
from rlt_core.generation.engine import Completion
from rlt_core.progress import Progress
from rlt_core.prompts.renderer import Explanation, Renderer
from rlt_core.rows import read_rows
from rlt_core.stages import TraceGenerationConfig
from tasks.shards import in_shards
from tasks.stage import StageContext

Row = dict[str, Any]


@dataclass(frozen=True)
class _Writer:
    """How the model is prompted, and how its completion is split."""

    renderer: Renderer
    context: Literal["teacher", "student"]

    def prompt(self, question: Row) -> list[int]:
        if self.context == "student":
            return self.renderer.student_prompt(question["question"])
        return self.renderer.teacher_prompt(question["question"], question["solution"])

    def explanation(self, completion_ids: Sequence[int]) -> Explanation:
        """The explanation, or the thought of a solver's answer."""
        if self.context == "student":
            return self.renderer.thought_of(completion_ids)
        return self.renderer.split_completion(completion_ids)


def run(ctx: StageContext) -> dict[str, float]:
    """Derive a completion's seed from (key, question, sample), not from its place in a batch."""
    config = ctx.config_as(TraceGenerationConfig)
    model, sampling = ctx.model("teacher"), config.sampling
    writer = _Writer(ctx.renderer("teacher", config.context), config.context)
    questions = [row for row in ctx.rows("questions") if row["split"] == config.split]
    questions = choose(questions, sampling.n_questions, config.seed)
    with open_engine(model, sampling.dtype, ctx.resources) as engine:

        def compute(shard: Sequence[Row], progress: Progress) -> list[Row]:
            completions = engine.generate(
                [writer.prompt(row) for row in shard],
                sampling,
                [
                    [sample_seed(ctx.spec.key, row["question_id"], i) for i in range(sampling.n)]
                    for row in shard
                ],
                writer.renderer.stop_ids,
                progress=progress,
            )
            return [
                _row(ctx, writer, row, sample, completion)
                for row, group in zip(shard, completions, strict=True)
                for sample, completion in enumerate(group)
            ]

        size = ctx.resources.shard_questions
        in_shards(ctx, "traces", questions, size, compute, _length)
    traces = read_rows(ctx.out, "traces", ["closed", "finish_reason", "completion_tokens"])
    return {
        "questions": len(questions),
        "traces": len(traces),
        "unclosed": sum(not trace["closed"] for trace in traces) / len(traces),
        "cut": sum(trace["finish_reason"] == "length" for trace in traces) / len(traces),
        "mean_tokens": sum(trace["completion_tokens"] for trace in traces) / len(traces),
    }


def _length(question: Row) -> int:
    """Characters of the texts in a prompt."""
    return len(question["question"]) + len(question["solution"])


def _row(
    ctx: StageContext, writer: _Writer, question: Row, sample: int, completion: Completion
) -> Row:
    explanation = writer.explanation(completion.ids)
    return {
        "trace_id": f"{question['question_id']}-{sample}",
        "question_id": question["question_id"],
        "seed": ctx.seed,
        "teacher": ctx.key("teacher"),
        "sample": sample,
        "text": explanation.text,
        "token_ids": explanation.ids,
        "completion_ids": completion.ids,
        "closed": explanation.closed,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": len(writer.prompt(question)),
        "completion_tokens": len(completion.ids),
    }
