"""Students of one rank each: their scores, and whether the ranks predict them."""

from dataclasses import dataclass

from rlt_core.evaluation.crossed import fraction
from rlt_core.evaluation.intervals import Estimate
from rlt_core.ranking import STATISTICS
from rlt_core.report.inputs import Part, Parts, Row
from rlt_core.report.scores import Evaluations
from rlt_core.report.statistics import matrix, paired_difference
from rlt_core.report.trace_sets import known_mean

REWARD, NOISE = "reward", "random"
"""Sets: the paper's, and the noise floor."""
UTILITY = "utility_spearman"
"""Statistic of a set whose traces have a measured utility."""


@dataclass(frozen=True)
class RankLine:
    """The `score` of the students of one rank, or a statistic over the ranks, over all seeds; None
    where it is not defined."""

    quantity: str
    value: float | None
    low: float | None
    """Like `high` the end of its 95% interval."""
    high: float | None
    by_seed: dict[int, float]
    rank: int | None = None
    """None for a statistic; so are the next three."""
    mean_reward: float | None = None
    utility: float | None = None
    traces: int | None = None
    student: str = ""
    """Variant of its evaluations."""


@dataclass(frozen=True)
class RankAblation:
    """Student score over the rank in one set."""

    ranked_by: str
    task: str
    lines: list[RankLine]
    statistics: list[RankLine]
    undefined_resamples: float
    first_minus_last: Estimate | None
    """Score of the students of the first rank minus that of the last, on the same questions."""

    def statistic(self, name: str) -> RankLine | None:
        return next((one for one in self.statistics if one.quantity == name), None)

    @property
    def spread(self) -> float | None:
        """Best student's score minus the worst's."""
        values = [line.value for line in self.lines if line.value is not None]
        return max(values) - min(values) if values else None


def rank_sets(parts: Parts, evaluations: Evaluations) -> list[RankAblation]:
    """One set per artifact; the reward's first, the noise floor last."""
    sets = [_rank_set(part, parts, evaluations) for part in parts.of("rank-statistics")]
    return sorted(sets, key=lambda one: (one.ranked_by != REWARD, one.ranked_by == NOISE))


def _rank_set(part: Part, parts: Parts, evaluations: Evaluations) -> RankAblation:
    rows = [row for row in part.rows("rank_scores") if row["value"] is not None]
    task = rows[0]["task"] if rows else ""
    metrics = part.manifest.metrics
    students = {one.manifest.ref.key: one.variant for one in parts.of("evaluation")}
    named = {name.partition("@")[0]: ref.key for name, ref in part.manifest.inputs.items()}
    lines = []
    for rank in sorted({row["rank"] for row in rows}):
        student = students[named[f"rank-{rank}"]]
        of_rank = [row for row in rows if row["rank"] == rank]
        lines.append(_rank_line(of_rank, student, evaluations.by_question(student, task, "avg")))
    seeds = sorted({row["seed"] for row in rows})
    first_minus_last = None
    if len(lines) > 1:
        ends = (lines[0].student, lines[-1].student)
        first_minus_last = paired_difference(
            *(evaluations.by_question(student, task, "avg") for student in ends)
        )
    return RankAblation(
        ranked_by=next((row["ranked_by"] for row in rows if row["ranked_by"]), REWARD),
        task=task,
        lines=lines,
        statistics=[
            RankLine(
                name, value=metrics.get(name), low=metrics.get(f"{name}_low"),
                high=metrics.get(f"{name}_high"),
                by_seed={s: metrics[f"{name}@{s}"] for s in seeds if f"{name}@{s}" in metrics},
            )
            for name in (*STATISTICS, *({UTILITY} & metrics.keys()))
        ],
        undefined_resamples=metrics.get("undefined_resamples", 0.0),
        first_minus_last=first_minus_last,
    )  # fmt: skip


def _rank_line(rows: list[Row], student: str, values: list[dict[str, float]]) -> RankLine:
    """With one seed the interval that the ablation recorded, else one that includes the seeds."""
    low, high = rows[0]["low"], rows[0]["high"]
    if len(rows) > 1:
        estimate = fraction(matrix(values), sum(map(len, values)))
        low, high = estimate.low, estimate.high
    return RankLine(
        "score", value=sum(row["value"] for row in rows) / len(rows), low=low, high=high,
        by_seed={row["seed"]: row["value"] for row in rows},
        rank=rows[0]["rank"],
        mean_reward=known_mean([row["mean_reward"] for row in rows]),
        utility=known_mean([row["utility"] for row in rows]),
        traces=sum(row["traces"] for row in rows),
        student=student,
    )  # fmt: skip
