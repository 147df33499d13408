"""Two trace sets on the same questions: what each part of the reward makes of them, and texts.

Shapes: S seeds of the teacher that scored, Q questions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from rlt_core.evaluation.comparisons import cluster_bootstrap, permutation_p
from rlt_core.evaluation.crossed import Floats, crossed_mean
from rlt_core.evaluation.intervals import Estimate
from rlt_core.report.inputs import Part, Parts

PARTS = (
    "reward", "r_ss", "r_kl", "solution_mean", "solution_min", "kl_mean", "kl_max", "penalty",
    "think_tokens", "think_mean", "rank_surprisal", "copied", "compression", "doubt",
)  # fmt: skip
"""The reward, its parts, and what stands beside it."""
SHOWN = 3
"""Questions whose texts are shown: the first by id."""


@dataclass(frozen=True)
class PartLine:
    """One part of the reward in both sets, on the questions where both have it."""

    part: str
    means: tuple[float, float]
    checkpoint: Estimate
    """Second minus first, for these seeds: other questions could have come."""
    method: Estimate | None
    """With training seeds random, too; None for one seed."""
    p: float
    """Paired permutation test of the questions."""


@dataclass(frozen=True)
class Side:
    """A question's trace in one set."""

    text: str
    parts: dict[str, float | None]


@dataclass(frozen=True)
class SideBySide:
    """One question with the trace of each set."""

    question_id: str
    question: str
    solution: str
    sides: tuple[Side, Side]


@dataclass(frozen=True)
class Compared:
    """All that is said of two sets."""

    names: tuple[str, str]
    estimators: tuple[str, str]
    """KL estimator of each set's rewards, with its reason where the traces are off-policy."""
    seeds: list[int | None]
    questions: list[str]
    """That both have a scored trace of under every seed."""
    lines: list[PartLine]
    wins: int
    """Questions where the second set has the better reward."""
    ties: int
    losses: int
    sign_p: float
    """Sign test of wins against losses, two-sided."""
    by_question: list[dict[str, Any]]
    """Rows of `compared.csv`."""
    texts: list[SideBySide]


def compared(names: tuple[str, str], parts: Parts) -> Compared:
    """Compare two variants of trace-scoring. Raises ValueError if one is not among the inputs, if
    their seeds differ or if they share no question."""
    found = parts.by_variant("trace-scoring")
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"no trace-scoring[{missing[0]}] to compare")
    first, second = (found[name] for name in names)
    seeds = [part.seed for part in first]
    if seeds != [part.seed for part in second]:
        raise ValueError(f"the traces of {names[0]} and {names[1]} were scored with other seeds")
    means = [[_by_question(part) for part in side] for side in (first, second)]
    common = sorted(set.intersection(*(set(each) for side in means for each in side)))
    if not common:
        raise ValueError(f"{names[0]} and {names[1]} share no question with scored traces")
    values = {part: tuple(_matrix(side, common, part) for side in means) for part in PARTS}
    gain_Q = np.diff([side_SQ.mean(axis=0) for side_SQ in values["reward"]], axis=0)[0]
    wins, losses = int((gain_Q > 0).sum()), int((gain_Q < 0).sum())
    return Compared(
        names=names,
        estimators=(_estimator(first[0]), _estimator(second[0])),
        seeds=seeds,
        questions=common,
        lines=[line for part in PARTS if (line := _part_line(part, *values[part]))],
        wins=wins,
        ties=len(common) - wins - losses,
        losses=losses,
        sign_p=float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
        by_question=list(_csv_rows(names, common, values, gain_Q)),
        texts=_texts(parts, first[0], second[0], common[:SHOWN]),
    )


def _estimator(part: Part) -> str:
    config = part.manifest.config
    reason = config.get("off_policy", "")
    return config["reward"]["kl"] + (f", off-policy: {reason}" if reason else "")


def _by_question(part: Part) -> dict[str, dict[str, float]]:
    """Question -> part of the reward -> mean over its scored traces that have it, else NaN."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in part.rows("scores", "question_id", "status", *PARTS):
        if row["status"] == "scored":
            groups[row["question_id"]].append(row)
    return {
        question: {name: _mean([row[name] for row in rows]) for name in PARTS}
        for question, rows in groups.items()
    }


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")


def _matrix(
    side: Sequence[Mapping[str, Mapping[str, float]]], questions: Sequence[str], part: str
) -> Floats:
    return np.array([[each[question][part] for question in questions] for each in side])


def _part_line(part: str, first_SQ: Floats, second_SQ: Floats) -> PartLine | None:
    """None where no question has the part in both sets."""
    known_Q = ~(np.isnan(first_SQ) | np.isnan(second_SQ)).any(axis=0)
    if not known_Q.any():
        return None
    first, second = first_SQ[:, known_Q], second_SQ[:, known_Q]
    gain_Q = (second - first).mean(axis=0)
    return PartLine(
        part=part,
        means=(float(first.mean()), float(second.mean())),
        checkpoint=cluster_bootstrap(gain_Q),
        method=crossed_mean(second - first) if len(first) > 1 else None,
        p=permutation_p(gain_Q),
    )


def _csv_rows(
    names: tuple[str, str],
    questions: Sequence[str],
    values: Mapping[str, tuple[Floats, ...]],
    gain_Q: Floats,
) -> list[dict[str, Any]]:
    """Means over the samples and seeds of each question; empty where there is no value."""
    rows = []
    for q, question in enumerate(questions):
        row: dict[str, Any] = {"question_id": question, "reward_difference": float(gain_Q[q])}
        for part, sides in values.items():
            for name, side_SQ in zip(names, sides, strict=True):
                mean = float(side_SQ[:, q].mean())
                row[f"{part}[{name}]"] = "" if np.isnan(mean) else mean
        rows.append(row)
    return rows


# ---------------------------------------------------------------- texts
def _texts(parts: Parts, first: Part, second: Part, questions: Sequence[str]) -> list[SideBySide]:
    """The first scored trace of each question, of the first seed."""
    asked = {row["question_id"]: row for row in _input(parts, first, "questions", "questions")}
    sides = [_first_traces(parts, part, questions) for part in (first, second)]
    return [
        SideBySide(
            question_id=question,
            question=asked[question]["question"],
            solution=asked[question]["solution"],
            sides=(sides[0][question], sides[1][question]),
        )
        for question in questions
        if question in asked and all(question in side for side in sides)
    ]


def _input(parts: Parts, part: Part, name: str, table: str) -> list[dict[str, Any]]:
    """Rows of what an artifact read under a name."""
    ref = part.manifest.inputs.get(name)
    made = [one for one in parts.all if ref and one.manifest.ref.key == ref.key]
    return made[0].rows(table) if made else []


def _first_traces(parts: Parts, scoring: Part, questions: Sequence[str]) -> dict[str, Side]:
    texts = {row["trace_id"]: row["text"] for row in _input(parts, scoring, "traces", "traces")}
    rows = scoring.rows("scores", "trace_id", "question_id", "sample", "status", *PARTS)
    found: dict[str, Side] = {}
    for row in sorted(rows, key=lambda row: row["sample"]):
        question = row["question_id"]
        if row["status"] != "scored" or question not in questions or question in found:
            continue
        if row["trace_id"] in texts:
            values = {name: row[name] for name in PARTS}
            found[question] = Side(text=texts[row["trace_id"]], parts=values)
    return found
