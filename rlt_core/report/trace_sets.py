"""Scored trace sets: their rewards and diagnostics, and two of them on the same questions.

Shapes: S seeds of the teacher that scored, Q questions.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from rlt_core.evaluation.comparisons import cluster_bootstrap, permutation_p
from rlt_core.evaluation.crossed import Floats, crossed_mean
from rlt_core.evaluation.intervals import Estimate
from rlt_core.report.inputs import Part, Parts, Row
from rlt_core.report.statistics import paired_difference

BEFORE, AFTER = "sft-held-out", "rlt-held-out"
"""Variants of the scores on questions that no teacher was trained on, before and after RL."""
NAMES = {
    BEFORE: "teacher before RL, held-out questions",
    AFTER: "teacher after RL, held-out questions",
    "sft": "teacher before RL, training questions (rank ablation)",
    "rlt": "teacher after RL, training questions (students' traces)",
}
OF_SCORED = ("r_ss", "r_kl", "anchor_gap", "solved_at", "closed")
MEANS = (
    "copied", "compression", "doubt", "clipped", "think_tokens", "think_mean", "rank_surprisal",
)  # fmt: skip
"""Columns of `scores` whose means a trace set has: of the scored traces, and of all."""
PARTS = (
    "reward", "r_ss", "r_kl", "solution_mean", "solution_min", "kl_mean", "kl_max", "penalty",
    "think_tokens", "think_mean", "rank_surprisal", "copied", "compression", "doubt",
)  # fmt: skip
"""What two sets are compared by: the reward, its parts, and the diagnostics beside it."""


def trace_sets(parts: Parts) -> tuple[list[Row], Estimate | None]:
    """One row per variant of trace-scoring, over all seeds: its mean `reward`, clustered by
    question and crossed with seeds (None: no trace was scored), means of other columns, and counts;
    and the reward after RL minus before, on the same held-out questions."""
    columns = ("question_id", "status", "reward", *OF_SCORED, *MEANS)
    found = {
        variant: {part.seed: part.rows("scores", *columns) for part in group}
        for variant, group in parts.by_variant("trace-scoring").items()
    }
    by_seed = {
        variant: {seed: made for seed, rows in each.items() if (made := _by_question(rows))}
        for variant, each in found.items()
    }
    order = sorted(found, key=lambda one: [*NAMES, one].index(one))
    gain = None
    if by_seed.get(AFTER) and by_seed.get(BEFORE):
        gain = paired_difference(*_aligned(*([*by_seed[one].values()] for one in (AFTER, BEFORE))))
    return [_trace_set(one, found[one], by_seed[one]) for one in order], gain


def _trace_set(
    variant: str,
    rows_by_seed: Mapping[int | None, list[Row]],
    by_seed: Mapping[int | None, dict[str, float]],
) -> Row:
    rows = [row for rows in rows_by_seed.values() for row in rows]
    scored = [row for row in rows if row["status"] == "scored"]
    means = _means(scored, OF_SCORED)  # r_kl: none without a model of the teacher
    return {
        **_means(rows, MEANS),
        **means,
        "name": NAMES.get(variant, variant),
        "reward": mean_over_seeds(list(by_seed.values())) if by_seed else None,
        "by_seed": {seed: known_mean(list(values.values())) for seed, values in by_seed.items()},
        "unclosed": None if means["closed"] is None else 1 - means["closed"],
        "traces": len(rows),
        "too_long": len(rows) - len(scored),
    }


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


# ---------------------------------------------------------------- two sets
def compared(names: tuple[str, str], parts: Parts) -> Row:
    """Compare two variants of trace-scoring on the questions for which both have a scored trace
    under every seed.

    `estimators`: the KL estimator of each set's rewards, with its reason where the traces are
    off-policy. `lines`: one row per part of the reward that both have: `means` of both, and second
    minus first for these seeds (`checkpoint`), with random training seeds too (`method`, None for
    one seed), and by a paired permutation test of the questions (`p`). `wins`: questions on
    which the second set has the better reward. `by_question`: rows of `compared.csv`.

    Raises ValueError if a variant is not among the inputs, if their seeds differ or if they share
    no question.
    """
    found = parts.by_variant("trace-scoring")
    for name in names:
        if name not in found:
            raise ValueError(f"no trace-scoring[{name}] to compare")
    first, second = (found[name] for name in names)
    if [part.seed for part in first] != [part.seed for part in second]:
        raise ValueError(f"the traces of {names[0]} and {names[1]} were scored with other seeds")
    columns = ("question_id", "status", *PARTS)
    rows = [[part.rows("scores", *columns) for part in side] for side in (first, second)]
    means = {name: [[_by_question(one, name) for one in side] for side in rows] for name in PARTS}
    common = sorted(set.intersection(*(set(one) for side in means["reward"] for one in side)))
    if not common:
        raise ValueError(f"{names[0]} and {names[1]} share no question with scored traces")
    values = {name: _aligned(*sides, questions=common) for name, sides in means.items()}
    gain_Q = np.diff([side_SQ.mean(axis=0) for side_SQ in values["reward"]], axis=0)[0]
    by_question: list[Row] = [
        {"question_id": question, "reward_difference": gain}
        for question, gain in zip(common, gain_Q.tolist(), strict=True)
    ]
    for part, sides in values.items():
        for name, side_SQ in zip(names, sides, strict=True):
            for row, mean in zip(by_question, side_SQ.mean(axis=0).tolist(), strict=True):
                row[f"{part}[{name}]"] = None if np.isnan(mean) else mean
    return {
        "names": names,
        "estimators": (_estimator(first[0]), _estimator(second[0])),
        "questions": common,
        "lines": [line for part in PARTS if (line := _part_line(part, *values[part]))],
        "wins": int((gain_Q > 0).sum()),
        "by_question": by_question,
        "seeds": len(first),
    }


def _estimator(part: Part) -> str:
    config = part.manifest.config
    reason = config.get("off_policy", "")
    return config["reward"]["kl"] + (f", off-policy: {reason}" if reason else "")


def _part_line(part: str, first_SQ: Floats, second_SQ: Floats) -> Row | None:
    """None where no question has the part in both sets."""
    known_Q = ~(np.isnan(first_SQ) | np.isnan(second_SQ)).any(axis=0)
    if not known_Q.any():
        return None
    first, second = first_SQ[:, known_Q], second_SQ[:, known_Q]
    gain_Q = (second - first).mean(axis=0)
    return {
        "part": part,
        "means": (float(first.mean()), float(second.mean())),
        "checkpoint": cluster_bootstrap(gain_Q),
        "method": crossed_mean(second - first) if len(first) > 1 else None,
        "p": permutation_p(gain_Q),
    }


# ---------------------------------------------------------------- means
def _by_question(rows: Sequence[Row], column: str = "reward") -> dict[str, float]:
    """Question -> mean over its scored traces that have a value."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["status"] == "scored" and row[column] is not None:
            found[row["question_id"]].append(row[column])
    return {question: sum(each) / len(each) for question, each in found.items()}


def _aligned(*sides: Sequence[Mapping[str, float]], questions: Sequence[str] = ()) -> list[Floats]:
    """(S, Q) of each side over these questions, by default all in the order of their names; NaN
    for none."""
    questions = questions or sorted({name for side in sides for one in side for name in one})
    return [
        np.array([[values.get(q, np.nan) for q in questions] for values in side]) for side in sides
    ]


def _means(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, float | None]:
    return {name: known_mean([row[name] for row in rows]) for name in columns}


def known_mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are not None."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
