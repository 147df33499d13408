"""Does the reward's rank of a trace predict what a student learns from it? (paper: figure, right)

One student a rank, trained on the completions of that rank; their scores are correlated with the
rank. Shapes: S seeds, R ranks, Q test questions, B resamples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rlt_core.config import RankedSet
from rlt_core.evaluation.intervals import clustered_mean
from rlt_core.evaluation.scores import UNGRADED

Rows = Sequence[Mapping[str, Any]]
Floats = NDArray[np.float64]

STATISTICS = ("pearson", "spearman", "kendall", "slope_points")
"""Signed so that positive means: the better the rank, the better the student. `slope_points`:
percentage points of score that one rank up is worth (least squares)."""
Z_95 = float(stats.norm.ppf(0.975))
LARGEST_Z = 5.0
"""Fisher's z of a correlation is cut here (0.9999), since that of 1 is infinite."""


def rank_ablation(
    samples: Mapping[tuple[int, int], Rows],
    scores: Mapping[int, Rows],
    task: str,
    resamples: int,
    ranked_by: RankedSet = "reward",
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of `rank_scores` and the statistics over ranks, from `eval_samples` rows of a task by
    (seed, rank) and by seed `scores` rows, of which `rank` is the rank in the set `ranked_by`.
    A seed's own statistics are named `{statistic}@{seed}`.

    The 95% intervals come from resampling seeds and test questions; never the ranks, which are
    all there are. They are normal bootstrap intervals, of correlations on Fisher's z scale: chance
    in the students' scores pulls every correlation towards 0, a resample's twice, so that
    percentiles may not hold the value itself. With one seed they hold for that seed. A statistic
    that is not defined (all students alike, a single rank) is left out of the metrics, as are its
    resamples; `undefined_resamples` is their share.
    """
    seeds = sorted({seed for seed, _ in samples})
    ranks = sorted({rank for _, rank in samples})
    questions = sorted({row["question_id"] for rows in samples.values() for row in rows})
    marks_SRQ = np.array(
        [[_question_means(samples[seed, rank], questions) for rank in ranks] for seed in seeds]
    )
    rows = [
        {
            "seed": seed,
            "ranked_by": ranked_by,
            "rank": rank,
            "task": task,
            **_interval(marks_SRQ[s, r], samples[seed, rank]),
            **_reward(scores[seed], rank),
        }
        for s, seed in enumerate(seeds)
        for r, rank in enumerate(ranks)
    ]
    ranks_R = np.array(ranks, dtype=np.float64)
    metrics = rank_statistics(ranks_R, marks_SRQ, resamples)
    for seed, own in zip(seeds, seed_statistics(ranks_R, marks_SRQ, resamples), strict=True):
        metrics |= {f"{name}@{seed}": value for name, value in own.items()}
    return rows, metrics


def _question_means(rows: Rows, questions: Sequence[str]) -> list[float]:
    """Share of correct completions of each question; NaN where none could be graded."""
    marks: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        if row["outcome"] not in UNGRADED:
            marks[row["question_id"]].append(row["outcome"] == "correct")
    return [float(np.mean(marks[q])) if q in marks else float("nan") for q in questions]


def _interval(marks_Q: Floats, rows: Rows) -> dict[str, float | None]:
    graded = sum(row["outcome"] not in UNGRADED for row in rows)
    estimate = clustered_mean(marks_Q[~np.isnan(marks_Q)].tolist(), graded)
    if estimate is None:
        return {"value": None, "low": None, "high": None}
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _reward(scores: Rows, rank: int) -> dict[str, float | int | None]:
    rewards = [row["reward"] for row in scores if row["rank"] == rank]
    return {"mean_reward": float(np.mean(rewards)) if rewards else None, "traces": len(rewards)}


def rank_statistics(ranks_R: Floats, marks_SRQ: Floats, resamples: int) -> dict[str, float]:
    """`STATISTICS` of the students' mean scores, each with `_low` and `_high`.

    marks_SRQ: share of correct completions, NaN where none was graded. Seeds and questions are
    drawn independently of each other (a question is the same for every student), 0 is the seed.
    """
    S, R, Q = marks_SRQ.shape
    if R < 2 or Q == 0:
        return {}
    rng = np.random.default_rng(0)
    draws_BS = np.vstack([np.ones(S), rng.multinomial(S, np.full(S, 1 / S), size=resamples)])
    draws_BQ = np.vstack([np.ones(Q), rng.multinomial(Q, np.full(Q, 1 / Q), size=resamples)])
    graded_SRQ = ~np.isnan(marks_SRQ)
    weights_BSR = np.einsum("bs,bq,srq->bsr", draws_BS, draws_BQ, graded_SRQ, optimize=True)
    sums_BSR = np.einsum("bs,bq,srq->bsr", draws_BS, draws_BQ, np.nan_to_num(marks_SRQ),
                         optimize=True)  # fmt: skip
    with np.errstate(invalid="ignore"):
        score_BR = sums_BSR.sum(axis=1) / weights_BSR.sum(axis=1)
    values = _statistics(-ranks_R, score_BR)
    metrics = {"undefined_resamples": float(np.mean(~np.isfinite(values["pearson"][1:])))}
    for name, values_B in values.items():
        value, resampled_B = float(values_B[0]), values_B[1:][np.isfinite(values_B[1:])]
        if np.isfinite(value) and len(resampled_B):
            low, high = _normal_interval(value, resampled_B, name != "slope_points")
            metrics |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return metrics


def seed_statistics(ranks_R: Floats, marks_SRQ: Floats, resamples: int) -> list[dict[str, float]]:
    """`rank_statistics` of each seed on its own, in order: intervals from its test questions only.

    A correlation over all seeds is that of the mean scores, with less chance in them; it lies
    further from 0 than those of the seeds, which are what one run of the ablation shows.
    """
    return [rank_statistics(ranks_R, seed_RQ[None], resamples) for seed_RQ in marks_SRQ]


@dataclass(frozen=True)
class RankTest:
    """F test of the main effect of rank against the rank x seed interaction."""

    f: float
    degrees: tuple[int, int]
    p: float


def rank_seed_test(marks_SRQ: Floats) -> RankTest | None:
    """Do the students of some rank score higher than those of the others, whatever the seed?

    F = MS_rank / MS_rank x seed in the two-way layout of the scores (S, R), with R - 1 and
    (R - 1)(S - 1) degrees of freedom. Where the ranks of a seed are exchangeable, as random ones
    are, p is uniform. It is one test over all ranks; tests of their pairs share students and are
    not independent. marks_SRQ has no NaN; None for one seed or one rank.
    """
    S, R, _ = marks_SRQ.shape
    if S < 2 or R < 2:
        return None
    score_SR = marks_SRQ.mean(axis=2)
    among_R = score_SR.mean(axis=0) - score_SR.mean()
    rest_SR = score_SR - score_SR.mean(axis=1, keepdims=True) - among_R
    degrees = R - 1, (R - 1) * (S - 1)
    rank, rest = S * float(among_R @ among_R) / degrees[0], float((rest_SR**2).sum()) / degrees[1]
    if rest <= 1e-12 * rank or rank == 0:
        return RankTest(np.inf if rank > 0 else 0.0, degrees, 0.0 if rank > 0 else 1.0)
    return RankTest(rank / rest, degrees, float(stats.f.sf(rank / rest, *degrees)))


def _normal_interval(value: float, resampled_B: Floats, correlation: bool) -> tuple[float, float]:
    """value ± 1.96 bootstrap standard deviations, for a correlation on Fisher's z scale."""
    if not correlation:
        half = Z_95 * float(resampled_B.std())
        return value - half, value + half
    largest = np.tanh(LARGEST_Z)
    z, z_B = (np.arctanh(np.clip(each, -largest, largest)) for each in (value, resampled_B))
    half = Z_95 * float(z_B.std())
    low, high = float(np.tanh(z - half)), float(np.tanh(z + half))
    return min(low, value), max(high, value)


def _statistics(goodness_R: Floats, score_BR: Floats) -> dict[str, Floats]:
    """Each statistic of each resample; NaN where it is not defined."""
    constant_B = np.ptp(score_BR, axis=1) == 0
    values = dict.fromkeys(STATISTICS, np.full(len(score_BR), np.nan))
    kept_BR = score_BR[~constant_B]
    goodness_BR = np.broadcast_to(goodness_R, kept_BR.shape)
    ranked_BR = stats.rankdata(kept_BR, axis=1)
    correlations = {
        "pearson": stats.pearsonr(goodness_BR, kept_BR, axis=1).statistic,
        "spearman": stats.pearsonr(
            np.broadcast_to(stats.rankdata(goodness_R), kept_BR.shape), ranked_BR, axis=1
        ).statistic,
        "kendall": stats.kendalltau(goodness_BR, kept_BR, axis=1).statistic,
    }
    for name, kept_B in correlations.items():
        values[name] = np.full(len(score_BR), np.nan)
        values[name][~constant_B] = kept_B
    centred_R = goodness_R - goodness_R.mean()
    values["slope_points"] = 100 * score_BR @ centred_R / (centred_R @ centred_R)
    return values
