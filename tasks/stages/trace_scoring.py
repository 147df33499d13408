"""trace-scoring: per-token log-probs, rewards and ranks of traces, in shards."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from rlt_core.config.inference import UTILITY_QUESTIONS
from rlt_core.data.trace_selection import choose
from rlt_core.errors import UserError
from rlt_core.grading import Grader
from rlt_core.models import compute_dtype, load_model, on_device
from rlt_core.progress import Progress
from rlt_core.rows import read_rows
from rlt_core.scoring import ContextBuilder, Contexts, score_contexts, with_anchoring, with_utility
from rlt_core.scoring.score_traces import arrivals, contexts_of
from rlt_core.scoring.tokens import Loader
from rlt_core.stages import TraceScoringConfig
from tasks.shards import in_shards
from tasks.stage import StageContext

Row = dict[str, Any]
METRICS = ["status", "reward", "r_ss", "r_kl", "correct", "anchor_gap", "solved_at", "utility"]


def run(ctx: StageContext) -> dict[str, float]:
    """Keep a question's traces in one shard, so that the shard can rank them."""
    config = ctx.config_as(TraceScoringConfig)
    if config.note:
        print(config.note)
    student_renderer = ctx.renderer("student", "student")
    teacher_renderer = ctx.renderer("teacher", "teacher") if "teacher" in ctx.spec.inputs else None
    builder = ContextBuilder(student_renderer, teacher_renderer, config.reward.alignment)
    scoring = config.scoring
    parts = 1 + scoring.anchoring + bool(scoring.utility_questions)
    as_text = config.reward.alignment == "text" and bool(config.off_policy)
    questions = {row["question_id"]: row for row in ctx.rows("questions")}

    @cache
    def loaded(folder: Path) -> PreTrainedModel:
        return load_model(folder, compute_dtype(scoring.dtype, ctx.resources.device))

    def loader(name: str) -> Loader:
        return lambda: on_device(loaded(ctx.model(name)), ctx.resources)

    def compute(shard: Sequence[list[Row]], progress: Progress) -> list[Row]:
        traces = [trace for group in shard for trace in group]
        contexts = contexts_of(traces, questions, builder, as_text)
        rows = score_contexts(
            traces,
            contexts,
            student=ctx.key("student"),
            load_student=loader("student"),
            load_teacher=loader("teacher") if teacher_renderer else None,
            spec=config.reward,
            max_tokens=scoring.max_tokens,
            tokens_per_batch=ctx.resources.tokens_per_batch,
            words=student_renderer.words,
            correct=arrivals(traces, questions, grader, progress),
            progress=progress.part(0, parts),
        )
        if scoring.anchoring:
            rows = with_anchoring(
                rows, contexts, questions, student_renderer, loader("student"),
                config.reward.temperature, ctx.resources.tokens_per_batch, progress.part(1, parts),
            )  # fmt: skip
        return with_utility(
            rows, _measured_ids(rows, contexts, measured), questions, held_out, student_renderer,
            lambda: on_device(load_model(ctx.model("student"), "float32"), ctx.resources),
            scoring.utility_learning_rate, ctx.resources.tokens_per_batch,
            progress.part(parts - 1, parts),
        )  # fmt: skip

    by_question: dict[str, list[Row]] = {}
    for trace in ctx.rows("traces"):
        by_question.setdefault(trace["question_id"], []).append(trace)
    groups = list(by_question.values())
    asked = [name for name in sorted(by_question) if questions[name]["split"] == "train"]
    measured = set(choose(asked, scoring.utility_questions, config.seed))
    with Grader() as grader:
        held_out = _held_out(ctx, questions, grader) if measured else []
        in_shards(ctx, "scores", groups, ctx.resources.shard_questions, compute, _length)
    return _metrics(read_rows(ctx.out, "scores", METRICS))


def _held_out(ctx: StageContext, questions: Mapping[str, Row], grader: Grader) -> list[Row]:
    """Return the validation questions on which utility is measured. Raises UserError."""
    rows = [questions[name] for name in sorted(questions)]
    rows = [row for row in rows if row["split"] == "validation" and row["trace"]]
    asked = [{"text": row["trace"], "question_id": row["question_id"]} for row in rows]
    arrived = arrivals(asked, questions, grader, ctx.progress)
    found = [row for row, right in zip(rows, arrived, strict=True) if right][:UTILITY_QUESTIONS]
    if not found:
        raise UserError(
            f"{ctx.spec.name}: utility is measured on validation questions whose own explanation "
            "arrives at the solution, and the data has none: set "
            "trace_scoring.utility_questions=0, or take data with traces"
        )
    return found


def _measured_ids(
    rows: Sequence[Row], contexts: Sequence[Contexts], measured: Collection[str]
) -> list[Sequence[int] | None]:
    """Return the explanations whose utility is measured: the scored ones of some questions."""
    return [
        each.think_ids if row["question_id"] in measured and row["status"] == "scored" else None
        for row, each in zip(rows, contexts, strict=True)
    ]


def _length(group: Sequence[Row]) -> int:
    """Tokens of a question's longest trace."""
    return max(len(trace["token_ids"]) for trace in group)


def _metrics(scores: Sequence[Row]) -> dict[str, float]:
    """Means over the scored traces; share of correct explanations among the graded ones."""
    means = {}
    for name in METRICS[1:]:
        if values := [row[name] for row in scores if row[name] is not None]:
            prefix = "mean_" if name in ("reward", "r_ss", "r_kl") else ""
            means[prefix + name] = sum(values) / len(values)
    scored = sum(row["status"] == "scored" for row in scores)
    ungraded = sum(row["correct"] is None for row in scores)
    return {**means, "scored": scored, "too_long": len(scores) - scored, "ungraded": ungraded}
