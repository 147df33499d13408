"""Rows of the table `scores`: rewards of traces, their parts, baselines and diagnostics."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rlt_core.config import RewardSpec
from rlt_core.grading import UNGRADED, GradeItem, Grader
from rlt_core.progress import Progress
from rlt_core.reward.baselines import mean_likelihood, rank_surprisal_ratio
from rlt_core.reward.diagnostics import diagnose
from rlt_core.reward.formula import rank_rewards
from rlt_core.scoring.alignment import ContextBuilder, Contexts
from rlt_core.scoring.tokens import Loader, TokenScores, token_scores
from rlt_core.sql.schemas import SCORES

Row = dict[str, Any]


def score_contexts(
    traces: Sequence[Mapping[str, Any]],
    contexts: Sequence[Contexts],
    *,
    student: str,
    load_student: Loader,
    load_teacher: Loader | None,
    spec: RewardSpec,
    max_tokens: int,
    tokens_per_batch: int,
    words: int | None = None,
    correct: Sequence[bool | None] | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Compute the rows of `scores`, one per trace in input order.

    `traces` are rows of the table `traces`, `contexts` as `contexts_of` builds them; `student` is
    the key of the reward student, `words` the tokenizer's, `correct` what `arrivals` returns; empty
    where no answer is known. First the student scores everything, then the teacher; each is loaded
    once. Without a teacher r_KL is None, and r is r_SS plus the penalty. A trace with a context of
    more than `max_tokens` is not scored: its status is `too_long`.
    Raises RuntimeError with the id of a trace whose reward is not finite.
    """
    kept = [i for i, each in enumerate(contexts) if each.longest <= max_tokens]
    scored = token_scores(
        [contexts[i] for i in kept],
        load_student,
        load_teacher,
        spec,
        tokens_per_batch,
        ranks=True,
        words=words,
        progress=progress,
    )
    by_trace = dict(zip(kept, scored, strict=True))
    arrived = [None] * len(traces) if correct is None else correct
    return assign_ranks(
        [
            {**_row(trace, each, student, spec, by_trace.get(i)), "correct": right}
            for i, (trace, each, right) in enumerate(zip(traces, contexts, arrived, strict=True))
        ]
    )


def assign_ranks(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with `rank`: 1 for the best reward among a question's scored completions.

    Completions are ranked together if question, seed, teacher and student are the same; of equal
    rewards the lower sample ranks better. A row without a reward has no rank.
    """
    ranked = [{**row, "rank": None} for row in rows]
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in ranked:
        if row["reward"] is not None:
            key = tuple(row[name] for name in ("question_id", "seed", "teacher", "student"))
            groups[key].append(row)
    for group in groups.values():
        group.sort(key=lambda row: row["sample"])
        for row, rank in zip(group, rank_rewards([row["reward"] for row in group]), strict=True):
            row["rank"] = rank
    return ranked


def contexts_of(
    traces: Sequence[Mapping[str, Any]],
    questions: Mapping[str, Mapping[str, Any]],
    builder: ContextBuilder,
    as_text: bool = False,
) -> list[Contexts]:
    """Return the contexts of each trace. `questions`: rows of `questions` by id; `as_text`: the
    traces' ids may be those of another tokenizer than the teacher's."""
    found = []
    for trace in traces:
        row = questions[trace["question_id"]]
        ids = None if as_text else trace["token_ids"]
        found.append(builder.contexts(row["question"], row["solution"], trace["text"], ids))
    return found


def arrivals(
    traces: Sequence[Mapping[str, Any]],
    questions: Mapping[str, Mapping[str, Any]],
    grader: Grader,
    progress: Progress,
) -> list[bool | None]:
    """Whether each explanation, read as a solution, gives the question's answer; None where it
    cannot be graded or the grader failed."""
    items = []
    for trace in traces:
        row = questions[trace["question_id"]]
        items.append(GradeItem(trace["text"], row["answer"], row["grader"], row["metadata"]))
    unknown = (*UNGRADED, "grader_failed")
    return [
        None if grade.outcome in unknown else grade.outcome == "correct"
        for grade in grader.grade_many(items, progress.check)
    ]


def _row(
    trace: Mapping[str, Any],
    contexts: Contexts,
    student: str,
    spec: RewardSpec,
    scores: TokenScores | None,
) -> Row:
    solution_ids = contexts.student.ids[slice(*contexts.solution)]
    row: Row = {
        **dict.fromkeys(SCORES.names),
        **{name: trace[name] for name in ("trace_id", "question_id", "seed", "teacher", "sample")},
        "student": student,
        "status": "too_long",
        "closed": trace["closed"],
        "think_tokens": len(contexts.think_ids),
        "solution_tokens": len(solution_ids),
        "temperature": spec.temperature,
        **dataclasses.asdict(diagnose(trace["text"], contexts.think_ids, solution_ids)),
        "clipped": trace["finish_reason"] and trace["finish_reason"] == "length",
    }
    if scores is None:
        return row
    assert scores.think_ranks is not None and scores.think_surprisal is not None
    try:
        parts = scores.reward(trace["closed"], spec)
    except ValueError as error:
        raise RuntimeError(f"trace {trace['trace_id']}: {error}") from error
    return (
        row
        | dataclasses.asdict(parts)
        | scores.columns()
        | {
            "status": "scored",
            "think_mean": mean_likelihood(scores.student_think),
            "rank_surprisal": rank_surprisal_ratio(scores.think_ranks, scores.think_surprisal),
        }
    )
