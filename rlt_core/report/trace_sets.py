"""Scored trace sets: their rewards, the baselines of the reward and the diagnostics beside it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from rlt_core.evaluation.crossed import Floats, crossed_mean
from rlt_core.evaluation.intervals import Estimate
from rlt_core.report.inputs import Parts, Row
from rlt_core.report.statistics import paired_difference

BEFORE, AFTER = "sft-held-out", "rlt-held-out"
"""Variants of the scores on questions that no teacher was trained on, before and after RL."""
NAMES = {
    BEFORE: "teacher before RL, held-out questions",
    AFTER: "teacher after RL, held-out questions",
    "sft": "teacher before RL, training questions (rank ablation)",
    "rlt": "teacher after RL, training questions (students' traces)",
}
PARTS = ("r_ss", "r_kl", "anchor_gap", "solved_at")
MEANS = (
    "copied", "compression", "doubt", "clipped", "think_tokens", "think_mean", "rank_surprisal",
)  # fmt: skip
"""Columns of `scores` whose means a trace set has: of the scored traces, and of all."""


def trace_sets(parts: Parts) -> tuple[list[Row], Estimate | None]:
    """One row per variant of trace-scoring, over all seeds: its mean `reward`, clustered by
    question and crossed with seeds (None: no trace was scored), means of other columns, and counts;
    and the reward after RL minus before, on the same held-out questions."""
    columns = ("question_id", "status", "reward", "closed", *PARTS, *MEANS)
    found = {
        variant: {part.seed: part.rows("scores", *dict.fromkeys(columns)) for part in group}
        for variant, group in parts.by_variant("trace-scoring").items()
    }
    by_seed = {
        variant: {seed: values for seed, rows in each.items() if (values := _by_question(rows))}
        for variant, each in found.items()
    }
    order = sorted(found, key=lambda one: [*NAMES, one].index(one))
    gain = None
    if by_seed.get(AFTER) and by_seed.get(BEFORE):
        gain = paired_difference(*_aligned(*([*by_seed[one].values()] for one in (AFTER, BEFORE))))
    return [_trace_set(one, found[one], by_seed[one]) for one in order], gain


def _by_question(rows: Sequence[Row]) -> dict[str, float]:
    """Question -> mean reward of its scored traces."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["status"] == "scored":
            found[row["question_id"]].append(row["reward"])
    return {question: sum(each) / len(each) for question, each in found.items()}


def _aligned(*sides: Sequence[Mapping[str, float]]) -> list[Floats]:
    """(S, Q) of each side over the questions of all, in the order of their names; NaN for none."""
    questions = sorted({name for side in sides for values in side for name in values})
    return [
        np.array([[values.get(q, np.nan) for q in questions] for values in side]) for side in sides
    ]


def mean_over_seeds(by_seed: Sequence[Mapping[str, float]]) -> Estimate:
    """Mean of the questions' values on those that every seed has, crossed with seeds.

    If the seeds have no question in common, each of them has questions of its own: then the mean
    and t interval of the seeds' means.
    """
    [values_SQ] = _aligned(by_seed)
    common_Q = ~np.isnan(values_SQ).any(axis=0)
    if common_Q.any():
        return crossed_mean(values_SQ[:, common_Q])
    estimate = crossed_mean(np.nanmean(values_SQ, axis=1)[None])
    return replace(estimate, questions=sum(map(len, by_seed)))


def _trace_set(
    variant: str,
    rows_by_seed: Mapping[int | None, list[Row]],
    by_seed: Mapping[int | None, dict[str, float]],
) -> Row:
    rows = [row for rows in rows_by_seed.values() for row in rows]
    scored = [row for row in rows if row["status"] == "scored"]
    means = _means(scored, (*PARTS, "closed"))  # r_kl: none without a model of the teacher
    return (
        _means(rows, MEANS)
        | means
        | {
            "name": NAMES.get(variant, variant),
            "reward": mean_over_seeds(list(by_seed.values())) if by_seed else None,
            "by_seed": {
                seed: sum(values.values()) / len(values) for seed, values in by_seed.items()
            },
            "unclosed": None if means["closed"] is None else 1 - means["closed"],
            "traces": len(rows),
            "too_long": len(rows) - len(scored),
        }
    )


def _means(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, float | None]:
    return {name: known_mean([row[name] for row in rows]) for name in columns}


def known_mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are not None."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
