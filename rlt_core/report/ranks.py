"""Students of one rank each: their scores, and whether the ranks predict them."""

from rlt_core.evaluation.crossed import method_score, question_means
from rlt_core.evaluation.intervals import Estimate
from rlt_core.ranking import STATISTICS
from rlt_core.report.inputs import Part, Parts, Row
from rlt_core.report.scores import Evaluations
from rlt_core.report.statistics import paired_difference
from rlt_core.report.trace_sets import known_mean

REWARD, NOISE = "reward", "random"
"""Sets: the paper's, and the noise floor."""
UTILITY = "utility_spearman"
"""Statistic of a set whose traces have a measured utility."""
COLUMNS = (
    "ranked_by", "task", "quantity", "rank", "value", "low", "high", "by_seed", "mean_reward",
    "traces",
)  # fmt: skip
"""Columns of `ranks.csv`; `quantity`: `score` of the students of a rank, or a statistic."""


def rank_sets(parts: Parts, evaluations: Evaluations) -> list[Row]:
    """Student score over the rank, a row per set; the reward's first, the noise floor last.

    `lines`: one per rank with `value`, the score of its students over all seeds (an Estimate),
    `by_seed`, `mean_reward`, `utility`, `traces` and `student`, the variant of its evaluations.
    `statistics`: those that are defined, by name, with `value` and `by_seed`. `first_minus_last`:
    score of the students of the first rank minus that of the last, on the same questions. `rows`:
    those of `ranks.csv`.
    """
    sets = [_rank_set(part, parts, evaluations) for part in parts.of("rank-statistics")]
    return sorted(sets, key=lambda one: (one["ranked_by"] != REWARD, one["ranked_by"] == NOISE))


def _rank_set(part: Part, parts: Parts, evaluations: Evaluations) -> Row:
    rows = [row for row in part.rows("rank_scores") if row["value"] is not None]
    task = rows[0]["task"] if rows else ""
    metrics = part.manifest.metrics
    students = {one.key: one.variant for one in parts.of("evaluation")}
    named = {name.partition("@")[0]: ref.key for name, ref in part.manifest.inputs.items()}
    by_rank = {rank: students[named[f"rank-{rank}"]] for rank in sorted({r["rank"] for r in rows})}
    correct = {rank: evaluations.correct(student, task) for rank, student in by_rank.items()}
    lines = []
    for rank, student in by_rank.items():
        of_rank = [row for row in rows if row["rank"] == rank]
        first = of_rank[0]
        recorded = Estimate(first["value"], first["low"], first["high"], 0)
        lines.append(
            {
                "quantity": "score", "rank": rank, "student": student,
                "value": method_score(correct[rank]) or recorded,  # None of a single seed
                "by_seed": {row["seed"]: row["value"] for row in of_rank},
                "mean_reward": known_mean([row["mean_reward"] for row in of_rank]),
                "utility": known_mean([row["utility"] for row in of_rank]),
                "traces": sum(row["traces"] for row in of_rank),
            }
        )  # fmt: skip
    first_minus_last = None
    if len(lines) > 1:
        ends = (question_means(correct[line["rank"]]) for line in (lines[0], lines[-1]))
        first_minus_last = paired_difference(*ends)
    ranked_by = next((row["ranked_by"] for row in rows if row["ranked_by"]), REWARD)
    statistics = {
        name: {
            "quantity": name,
            "value": Estimate(metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"], 0),
            "by_seed": {
                row["seed"]: metrics[f"{name}@{row['seed']}"]
                for row in rows
                if f"{name}@{row['seed']}" in metrics
            },
        }
        for name in (*STATISTICS, UTILITY)
        if name in metrics
    }
    one_set = {"ranked_by": ranked_by, "task": task}
    return one_set | {
        "lines": lines,
        "statistics": statistics,
        "first_minus_last": first_minus_last,
        "rows": [one_set | row for row in [*lines, *statistics.values()]],
    }
