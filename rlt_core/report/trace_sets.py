"""Scored trace sets: their rewards, the baselines of the reward and the diagnostics beside it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from rlt_core.evaluation.intervals import Estimate
from rlt_core.report.inputs import Parts, Row
from rlt_core.report.statistics import mean_over_seeds, paired_difference

BEFORE, AFTER = "sft-held-out", "rlt-held-out"
"""Variants of the scores on questions that no teacher was trained on, before and after RL."""
NAMES = {
    BEFORE: "teacher before RL, held-out questions",
    AFTER: "teacher after RL, held-out questions",
    "sft": "teacher before RL, training questions (rank ablation)",
    "rlt": "teacher after RL, training questions (students' traces)",
}
PARTS = ("r_ss", "r_kl", "anchor_gap", "solved_at", "think_tokens")
MEANS = (
    "copied", "compression", "doubt", "clipped", "think_tokens", "think_mean", "rank_surprisal",
)  # fmt: skip
"""Columns of `scores` whose means a line of rewards has, and a trace set."""
COLUMNS = ("name", "traces", *MEANS)
"""Columns of `traces.csv`."""


def rewards(parts: Parts) -> tuple[list[Row], Estimate | None]:
    """Mean rewards of each teacher's scored traces over all seeds, clustered by question and
    crossed with seeds; and after RL minus before, on the same held-out questions."""
    lines, questions = {}, {}
    for variant, group in parts.by_variant("trace-scoring").items():
        columns = ("question_id", "status", "reward", "closed", *PARTS)
        rows = {part.seed: part.rows("scores", *columns) for part in group}
        by_seed = {seed: values for seed, each in rows.items() if (values := _by_question(each))}
        if by_seed:
            lines[variant] = _reward_line(variant, rows, by_seed)
            questions[variant] = list(by_seed.values())
    order = [*(name for name in NAMES if name in lines), *(v for v in lines if v not in NAMES)]
    both = AFTER in lines and BEFORE in lines
    gain = paired_difference(questions[AFTER], questions[BEFORE]) if both else None
    return [lines[variant] for variant in order], gain


def _by_question(rows: Sequence[Row]) -> dict[str, float]:
    """Question -> mean reward of its scored traces."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["status"] == "scored":
            found[row["question_id"]].append(row["reward"])
    return {question: sum(each) / len(each) for question, each in found.items()}


def _reward_line(
    variant: str,
    rows_by_seed: Mapping[int | None, list[Row]],
    by_seed: Mapping[int | None, dict[str, float]],
) -> Row:
    rows = [row for rows in rows_by_seed.values() for row in rows]
    scored = [row for row in rows if row["status"] == "scored"]
    means = _means(scored, (*PARTS, "closed"))  # r_kl: none without a model of the teacher
    return means | {
        "name": NAMES.get(variant, variant),
        "reward": mean_over_seeds(list(by_seed.values())),
        "by_seed": {seed: sum(values.values()) / len(values) for seed, values in by_seed.items()},
        "unclosed": 1 - (means["closed"] or 0.0),
        "traces": len(rows),
        "too_long": len(rows) - len(scored),
    }


def trace_sets(parts: Parts) -> list[Row]:
    """One row per artifact of trace-scoring, in the order of the graph; None where no trace has the
    value."""
    every = ((part.name, part.rows("scores", *MEANS)) for part in parts.of("trace-scoring"))
    return [{"name": name, "traces": len(rows), **_means(rows, MEANS)} for name, rows in every]


def _means(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, float | None]:
    return {name: known_mean([row[name] for row in rows]) for name in columns}


def known_mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are not None."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
