"""How training went: rewards on held-out questions, reward and loss curves, alarms."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlt_core.evaluation.intervals import Estimate
from rlt_core.report.inputs import Part, Parts
from rlt_core.report.scores import RANKED
from rlt_core.report.statistics import crossed_mean, matrix, paired_difference
from rlt_core.report.traces import TraceSet, guard_lines, known_mean

WINDOW_STEPS = 10
"""Steps at either end of training that a curve's table takes the mean of."""
MANY = 0.5
"""Share of completions without end from which an alarm is raised."""
BEFORE, AFTER = "sft-held-out", "rlt-held-out"
"""Variants of the scores on questions that no teacher was trained on, before and after RL."""
NAMES = {
    BEFORE: "teacher before RL, held-out questions",
    AFTER: "teacher after RL, held-out questions",
    "sft": "teacher before RL, training questions (rank ablation)",
    "rlt": "teacher after RL, training questions (students' traces)",
}
GUARDED = ("copied", "compression", "clipped")
"""What the guards raise alarms for; of training, as means over the last `WINDOW_STEPS` steps."""
ALARMS = {
    "alarm_zero_variance": "in its last steps no group had two different rewards: nothing is "
    "learned any more",
    "alarm_reward_falling": "the reward fell during training, by more than its spread inside a "
    "group at the start",
}
"""Metric of a training artifact -> what it means when it is 1."""


# ---------------------------------------------------------------- rewards
@dataclass(frozen=True)
class RewardLine:
    """Scored traces of one teacher over all seeds."""

    variant: str
    name: str
    reward: Estimate
    by_seed: dict[int | None, float]
    r_ss: float
    r_kl: float
    unclosed: float
    think_tokens: float
    traces: int
    too_long: int


@dataclass(frozen=True)
class Rewards:
    """What each teacher's traces are worth."""

    lines: list[RewardLine]
    difference: Estimate | None
    """After RL minus before, on the same held-out questions."""


SCORE_COLUMNS = (
    "question_id", "status", "reward", "r_ss", "r_kl", "closed", "think_tokens",
)  # fmt: skip
Rows = Sequence[dict[str, Any]]


def rewards(parts: Parts) -> Rewards:
    """Mean rewards of all scored sets, clustered by question and crossed with seeds."""
    scored = {
        variant: [part.rows("scores", *SCORE_COLUMNS) for part in group]
        for variant, group in parts.by_variant("trace-scoring").items()
    }
    by_question = {
        variant: [values for rows in by_seed if (values := _by_question(rows))]
        for variant, by_seed in scored.items()
    }
    lines = [
        _reward_line(variant, group, scored[variant], by_question[variant])
        for variant, group in parts.by_variant("trace-scoring").items()
        if by_question[variant]
    ]
    known = list(NAMES)
    lines.sort(key=lambda line: known.index(line.variant) if line.variant in known else len(known))
    before, after = by_question.get(BEFORE), by_question.get(AFTER)
    return Rewards(lines, paired_difference(after, before) if before and after else None)


def _by_question(rows: Rows) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["status"] == "scored":
            found[row["question_id"]].append(row["reward"])
    return {question: sum(each) / len(each) for question, each in found.items()}


def _reward_line(
    variant: str,
    group: Sequence[Part],
    by_seed: Sequence[Rows],
    by_question: list[dict[str, float]],
) -> RewardLine:
    rows = [row for rows in by_seed for row in rows]
    scored = [row for row in rows if row["status"] == "scored"]

    def mean(value: Callable[[dict[str, Any]], float]) -> float:
        return sum(map(value, scored)) / len(scored)

    means = (sum(values.values()) / len(values) for values in by_question)
    return RewardLine(
        variant=variant,
        name=NAMES.get(variant, variant),
        reward=crossed_mean(matrix(by_question)),
        by_seed=dict(zip((part.seed for part in group), means, strict=False)),
        r_ss=mean(lambda row: row["r_ss"]),
        r_kl=mean(lambda row: row["r_kl"]),
        unclosed=mean(lambda row: not row["closed"]),
        think_tokens=mean(lambda row: row["think_tokens"]),
        traces=len(rows),
        too_long=len(rows) - len(scored),
    )


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
    first: float
    """Mean of the first `WINDOW_STEPS` steps."""
    last: float
    last_row: dict[str, float | None]
    """Means over the last `WINDOW_STEPS` steps of the other columns."""
    seconds: float


OTHERS = (
    "reference_kl", "grad_norm", "zero_std_groups", "unclosed", "clipped", "correct",
    "completion_tokens", "tokens_per_s", "copied", "compression",
)  # fmt: skip


def curves(parts: Parts) -> list[Curve]:
    """Every training run with steps, but those of rank students."""
    trained = (
        part for part in parts.all if part.has("train_steps") and not RANKED.fullmatch(part.variant)
    )
    return [curve for part in trained if (curve := _curve(part))]


def _curve(part: Part) -> Curve | None:
    rows = sorted(part.rows("train_steps"), key=lambda row: row["step"])
    if not rows:
        return None
    quantity = "reward" if rows[0]["reward"] is not None else "loss"
    values = [row[quantity] for row in rows]
    window = min(WINDOW_STEPS, len(rows))
    last = {name: known_mean([row[name] for row in rows[-window:]]) for name in OTHERS}
    return Curve(
        name=part.name,
        label=part.label,
        seed=part.seed,
        quantity=quantity,
        steps=[row["step"] for row in rows],
        values=values,
        first=sum(values[:window]) / window,
        last=sum(values[-window:]) / window,
        last_row=last,
        seconds=sum(row["seconds"] or 0.0 for row in rows),
    )


# ---------------------------------------------------------------- alarms
def alarms(
    parts: Parts, trained: Sequence[Curve], scored: Rewards, traces: Sequence[TraceSet]
) -> list[str]:
    """One line a thing that somebody should look at before believing the numbers."""
    return [
        *_of_manifests(parts),
        *(line for curve in trained for line in _of_curve(curve)),
        *(line for scores in scored.lines for line in _of_scores(scores)),
        *(line for made in traces for line in _of_traces(made)),
    ]


def _of_manifests(parts: Parts) -> Iterator[str]:
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


def _of_curve(curve: Curve) -> Iterator[str]:
    if not all(math.isfinite(value) for value in curve.values):
        yield f"{curve.name}: its {curve.quantity} was not finite"
    watched = {name: curve.last_row[name] for name in GUARDED}
    yield from guard_lines(curve.name, "the completions of its last steps", **watched)
    share = curve.last_row["unclosed"]
    if share is not None and share > MANY:
        yield (
            f"{curve.name}: {100 * share:.0f}% of the completions of its last steps are without "
            "their end"
        )


def _of_scores(scores: RewardLine) -> Iterator[str]:
    if scores.too_long:
        yield f"{scores.name}: {scores.too_long} of {scores.traces} traces were too long to score"
    if scores.unclosed > MANY:
        yield f"{scores.name}: {100 * scores.unclosed:.0f}% of the traces have no end"


def _of_traces(made: TraceSet) -> Iterator[str]:
    return guard_lines(made.name, "the traces", **{name: getattr(made, name) for name in GUARDED})
