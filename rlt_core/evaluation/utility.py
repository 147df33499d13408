"""Does the rank of a trace predict its measured utility (`rlt_core.scoring.utility`)?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from rlt_core.evaluation.comparisons import cluster_bootstrap


def utility_by_rank(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[dict[tuple[int, int], float], dict[str, float]]:
    """Return the mean utility by (seed, rank), and the metrics `utility_spearman`,
    `utility_spearman_low`, `utility_spearman_high` and `utility_questions`; both empty if no
    utility was measured.

    `rows`: seed, question_id, rank and utility of each trace. The correlation is Spearman's of
    utility with the negated rank inside a question (positive: better ranks are more useful), its
    mean over questions, with a 95% interval from resampling them. Questions whose traces all have
    one utility say nothing and are left out.
    """
    by_rank: dict[tuple[int, int], list[float]] = defaultdict(list)
    by_question: dict[str, dict[int, list[tuple[int, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        if row["utility"] is not None:
            by_rank[row["seed"], row["rank"]].append(row["utility"])
            by_question[row["question_id"]][row["seed"]].append((-row["rank"], row["utility"]))
    means = {place: float(np.mean(values)) for place, values in by_rank.items()}
    correlations = []
    for by_seed in by_question.values():
        pairs = [np.array(each).T for each in by_seed.values()]
        found = [
            float(stats.spearmanr(*each).statistic) for each in pairs if np.ptp(each, axis=1).all()
        ]
        if found:
            correlations.append(float(np.mean(found)))
    if not correlations:
        return means, {}
    estimate = cluster_bootstrap(np.array(correlations))
    metrics = {
        "utility_spearman": estimate.value,
        "utility_spearman_low": estimate.low,
        "utility_spearman_high": estimate.high,
        "utility_questions": float(len(correlations)),
    }
    return means, {name: value for name, value in metrics.items() if np.isfinite(value)}
