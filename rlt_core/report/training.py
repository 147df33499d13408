"""Training: rewards on held-out questions, reward and loss curves, alarms."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlt_core.evaluation.intervals import Estimate
from rlt_core.report.inputs import Parts, Row
from rlt_core.report.scores import RANKED
from rlt_core.report.statistics import mean_over_seeds, paired_difference
from rlt_core.report.trace_sets import diagnostic_alarms, known_mean

WINDOW_STEPS = 10
"""Steps at either end of training that a curve's table takes the mean of."""
MANY = 0.5
"""Share of unclosed completions from which an alarm is raised."""
BEFORE, AFTER = "sft-held-out", "rlt-held-out"
"""Variants of the scores on questions that no teacher was trained on, before and after RL."""
NAMES = {
    BEFORE: "teacher before RL, held-out questions",
    AFTER: "teacher after RL, held-out questions",
    "sft": "teacher before RL, training questions (rank ablation)",
    "rlt": "teacher after RL, training questions (students' traces)",
}
DIAGNOSTICS = ("copied", "compression", "clipped")
"""Means for which the diagnostics raise alarms; for training, over the last `WINDOW_STEPS`."""
ALARMS = {
    "alarm_zero_variance": "in its last steps no group had two different rewards: nothing is "
    "learned any more",
    "alarm_reward_falling": "the reward fell during training, by more than its spread inside a "
    "group at the start",
}
"""Metric of a training artifact -> what it means when it is 1."""


# ---------------------------------------------------------------- rewards
@dataclass(frozen=True)
class HeldOutRewards:
    """The rewards of each teacher's traces."""

    lines: list[Row]
    """One row per teacher over all seeds."""
    difference: Estimate | None
    """After RL minus before, on the same held-out questions."""


SCORE_COLUMNS = (
    "question_id", "status", "reward", "r_ss", "r_kl", "closed", "think_tokens", "anchor_gap",
    "solved_at",
)  # fmt: skip


def rewards(parts: Parts) -> HeldOutRewards:
    """Mean rewards of all scored sets, clustered by question and crossed with seeds."""
    lines, questions = {}, {}
    for variant, group in parts.by_variant("trace-scoring").items():
        rows = {part.seed: part.rows("scores", *SCORE_COLUMNS) for part in group}
        by_seed = {seed: values for seed, each in rows.items() if (values := _by_question(each))}
        if by_seed:
            lines[variant] = _reward_line(variant, rows, by_seed)
            questions[variant] = list(by_seed.values())
    order = [*(name for name in NAMES if name in lines), *(v for v in lines if v not in NAMES)]
    both = AFTER in lines and BEFORE in lines
    difference = paired_difference(questions[AFTER], questions[BEFORE]) if both else None
    return HeldOutRewards([lines[variant] for variant in order], difference)


def _by_question(rows: Sequence[Row]) -> dict[str, float]:
    """Question -> mean reward of its scored traces."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["status"] == "scored":
            found[row["question_id"]].append(row["reward"])
    return {question: sum(each) / len(each) for question, each in found.items()}


def _reward_line(
    variant: str,
    rows_by_seed: dict[int | None, list[Row]],
    by_seed: dict[int | None, dict[str, float]],
) -> Row:
    rows = [row for rows in rows_by_seed.values() for row in rows]
    scored = [row for row in rows if row["status"] == "scored"]

    def mean(column: str) -> float | None:
        return known_mean([row[column] for row in scored])

    return {
        "name": NAMES.get(variant, variant),
        "reward": mean_over_seeds(list(by_seed.values())),
        "by_seed": {seed: sum(values.values()) / len(values) for seed, values in by_seed.items()},
        "r_ss": mean("r_ss"),
        "r_kl": mean("r_kl"),  # there is none without a model of the teacher
        "anchor_gap": mean("anchor_gap"),
        "solved_at": mean("solved_at"),
        "unclosed": 1 - (mean("closed") or 0.0),
        "think_tokens": mean("think_tokens"),
        "traces": len(rows),
        "too_long": len(rows) - len(scored),
    }


# ---------------------------------------------------------------- curves
@dataclass(frozen=True)
class Curve:
    """One training run: reward of GRPO, or loss of SFT, step by step."""

    name: str
    label: str
    seed: int | None
    quantity: str
    """`reward` or `loss`."""
    steps: list[int]
    values: list[float]
    columns: dict[str, list[float | None]]
    """Name -> value of each step, of the `PLOTTED` columns that have any."""
    first: float
    """Mean of the first `WINDOW_STEPS` steps."""
    last: float
    last_row: dict[str, float | None]
    """Means over the last `WINDOW_STEPS` steps of the other columns."""
    seconds: float


OTHERS = (
    "reference_kl", "grad_norm", "zero_std_groups", "unclosed", "tokens_per_s", *DIAGNOSTICS,
)  # fmt: skip


PLOTTED = ("reward", "r_ss", "r_kl", "correct", "reference_kl", "completion_tokens", "loss")
"""Columns of a step that figures have."""


def curves(parts: Parts) -> list[Curve]:
    """Every training run with steps, except those of rank students."""
    found = []
    for part in parts.all:
        if RANKED.fullmatch(part.variant) or not part.has("train_steps"):
            continue
        rows = sorted(part.rows("train_steps"), key=lambda row: row["step"])
        if not rows:
            continue
        quantity = "reward" if rows[0]["reward"] is not None else "loss"
        values = [row[quantity] for row in rows]
        window = min(WINDOW_STEPS, len(rows))
        found.append(
            Curve(
                name=part.name,
                label=part.manifest.label,
                seed=part.seed,
                quantity=quantity,
                steps=[row["step"] for row in rows],
                values=values,
                columns={
                    name: [row[name] for row in rows]
                    for name in PLOTTED
                    if any(row[name] is not None for row in rows)
                },
                first=sum(values[:window]) / window,
                last=sum(values[-window:]) / window,
                last_row={
                    name: known_mean([row[name] for row in rows[-window:]]) for name in OTHERS
                },
                seconds=sum(row["seconds"] or 0.0 for row in rows),
            )
        )
    return found


# ---------------------------------------------------------------- alarms
def alarms(
    parts: Parts, trained: Sequence[Curve], scored: HeldOutRewards, traces: Sequence[Row]
) -> list[str]:
    """Return one line for each problem to look at before the numbers are believed."""
    names: dict[str, list[str]] = defaultdict(list)
    for alarm in _alarms(parts, trained, scored, traces):
        name, _, text = alarm.partition(": ")
        names[text].append(name)
    return [
        f"{', '.join(each[:3])}{f' and {len(each) - 3} more' if len(each) > 3 else ''}: {text}"
        for text, each in names.items()
    ]


def _alarms(
    parts: Parts, trained: Sequence[Curve], scored: HeldOutRewards, traces: Sequence[Row]
) -> Iterator[str]:
    for part in parts.all:
        for metric, value in part.manifest.metrics.items():
            if metric in ALARMS and value:
                yield f"{part.name}: {ALARMS[metric]}"
            if metric.endswith("/ungraded") and value:
                task = metric.removesuffix("/ungraded")
                yield (
                    f"{part.name}: {value:.0f} completions of {task} could not be graded and are "
                    "in no score"
                )
    for curve in trained:
        last = "the completions of its last steps"
        if not all(math.isfinite(value) for value in curve.values):
            yield f"{curve.name}: its {curve.quantity} was not finite"
        means = {name: curve.last_row[name] for name in DIAGNOSTICS}
        yield from diagnostic_alarms(curve.name, last, **means)
        share = curve.last_row["unclosed"]
        if share is not None and share > MANY:
            yield f"{curve.name}: {100 * share:.0f}% of {last} have no end"
    for line in scored.lines:
        name, too_long, unclosed = line["name"], line["too_long"], line["unclosed"]
        if too_long:
            yield f"{name}: {too_long} of {line['traces']} traces were too long to score"
        if unclosed > MANY:
            yield f"{name}: {100 * unclosed:.0f}% of the traces have no end"
    for made in traces:
        means = {name: made[name] for name in DIAGNOSTICS}
        yield from diagnostic_alarms(made["name"], "the traces", **means)
