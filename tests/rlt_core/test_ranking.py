"""The statistics of the rank ablation: right on known cases, honest on degenerate ones."""

import warnings

import numpy as np
import pytest
from scipy import stats

from rlt_core.ranking import (
    STATISTICS,
    rank_ablation,
    rank_seed_test,
    rank_statistics,
    seed_statistics,
)
from tests.sample_store import eval_row

RANKS = np.arange(1.0, 17.0)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def marks(rates, seeds=1, questions=200, seed=0):
    rng = np.random.default_rng(seed)
    shape = (seeds, len(rates), questions)
    return (rng.random(shape) < np.asarray(rates)[None, :, None]).astype(float)


def test_point_values_are_scipys_on_the_mean_scores():
    marks_SRQ = marks(np.linspace(0.9, 0.2, 16), seeds=2)
    metrics = rank_statistics(RANKS, marks_SRQ, 50)
    score_R = marks_SRQ.mean(axis=(0, 2))
    assert metrics["pearson"] == pytest.approx(stats.pearsonr(-RANKS, score_R).statistic)
    assert metrics["spearman"] == pytest.approx(stats.spearmanr(-RANKS, score_R).statistic)
    assert metrics["kendall"] == pytest.approx(stats.kendalltau(-RANKS, score_R).statistic)
    slope = stats.linregress(RANKS, score_R).slope
    assert metrics["slope_points"] == pytest.approx(-100 * slope)


def test_better_rank_better_student_is_positive_and_the_reverse_negative():
    falling, rising = (
        rank_statistics(RANKS, marks(rates), 100)
        for rates in (np.linspace(0.9, 0.2, 16), np.linspace(0.2, 0.9, 16))
    )
    for name in STATISTICS:
        assert falling[name] > 0 > rising[name]
        assert falling[f"{name}_low"] <= falling[name] <= falling[f"{name}_high"]


def test_more_questions_and_seeds_narrow_the_interval():
    rates = np.linspace(0.7, 0.5, 16)

    def width(**sizes):
        metrics = rank_statistics(RANKS, marks(rates, **sizes), 400)
        return metrics["slope_points_high"] - metrics["slope_points_low"]

    assert width(questions=800) < 0.7 * width(questions=100)
    assert width(questions=100, seeds=8) < width(questions=100, seeds=2)


def test_the_interval_of_the_slope_covers_the_truth():
    rates = np.linspace(0.65, 0.35, 8)
    truth = 100 * 0.3 / 7
    covered = 0
    for seed in range(60):
        metrics = rank_statistics(RANKS[:8], marks(rates, questions=60, seed=seed), 100)
        covered += metrics["slope_points_low"] <= truth <= metrics["slope_points_high"]
    assert covered >= 51  # 57 nominal


def test_a_difference_between_seeds_alone_widens_the_interval():
    one = marks(np.linspace(0.9, 0.2, 16))
    flipped = np.concatenate([one, one[:, ::-1]])
    same = np.concatenate([one, one])
    narrow, wide = (rank_statistics(RANKS, each, 200) for each in (same, flipped))
    assert narrow["pearson_low"] > 0.9
    assert wide["pearson_low"] < -0.9 and wide["pearson_high"] > 0.9


def test_each_seed_has_its_own_statistics_and_the_slopes_average_to_that_of_all():
    noisy = marks(np.linspace(0.6, 0.5, 16), seeds=4, questions=100)
    by_seed, overall = seed_statistics(RANKS, noisy, 100), rank_statistics(RANKS, noisy, 100)
    for seed, found in enumerate(by_seed):
        score_R = noisy[seed].mean(axis=1)
        assert found["kendall"] == pytest.approx(stats.kendalltau(-RANKS, score_R).statistic)
    slopes, correlations = (
        [found[name] for found in by_seed] for name in ("slope_points", "pearson")
    )
    assert np.mean(slopes) == pytest.approx(overall["slope_points"])
    assert np.mean(correlations) < overall["pearson"]


def test_the_interval_of_the_slope_covers_the_truth_where_students_differ_by_training_seed():
    rates, covered = np.linspace(0.65, 0.35, 8), 0
    for study in range(60):
        rng = np.random.default_rng(study)
        difficulty_Q, training_SR = rng.normal(0, 0.2, 60), rng.normal(0, 0.06, (3, 8))
        rate_SRQ = rates[:, None] + difficulty_Q + training_SR[:, :, None]
        marks_SRQ = (rng.random((3, 8, 60)) < rate_SRQ).astype(float)
        metrics = rank_statistics(RANKS[:8], marks_SRQ, 100)
        covered += metrics["slope_points_low"] <= 100 * 0.3 / 7 <= metrics["slope_points_high"]
    assert covered >= 51  # 57 nominal


def test_students_that_are_all_alike_have_no_correlation_but_a_slope_of_zero():
    metrics = rank_statistics(RANKS, np.ones((2, 16, 30)), 50)
    assert metrics["slope_points"] == 0
    assert "pearson" not in metrics and "kendall" not in metrics
    assert metrics["undefined_resamples"] == 1
    assert rank_statistics(RANKS[:1], np.ones((1, 1, 30)), 50) == {}


def test_two_ranks_that_change_places_between_resamples_know_nothing():
    students = np.array([[[1.0] * 11 + [0.0] * 9, [0.0] * 10 + [1.0] * 10]])
    metrics = rank_statistics(RANKS[:2], students, 200)
    assert abs(metrics["pearson"]) == pytest.approx(1.0)
    assert metrics["pearson_low"] < -0.9 and metrics["pearson_high"] > 0.9


def test_ungraded_completions_count_for_nothing():
    full = marks(np.linspace(0.9, 0.2, 16), questions=50)
    holes = np.concatenate([full, np.full((1, 16, 10), np.nan)], axis=2)
    wanted = rank_statistics(RANKS, full, 20)
    found = rank_statistics(RANKS, holes, 20)
    assert [found[name] for name in STATISTICS] == pytest.approx([wanted[n] for n in STATISTICS])


def test_rows_hold_each_seed_and_rank_with_its_rewards():
    samples = {
        (seed, rank): [
            eval_row(q, None if q == 9 else q % 4 >= rank + seed, seed=seed) for q in range(10)
        ]
        for seed in (0, 1)
        for rank in (1, 2)
    }
    scores = {
        seed: [{"rank": rank, "reward": -float(rank + seed)} for rank in (1, 2, 1, 2)]
        + [{"rank": None, "reward": None}]
        for seed in (0, 1)
    }
    rows, metrics = rank_ablation(samples, scores, "test", 100)
    assert [(row["seed"], row["rank"]) for row in rows] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    first = rows[0]
    assert first["value"] == pytest.approx(6 / 9)
    assert first["low"] < first["value"] < first["high"]
    assert (first["mean_reward"], first["traces"], first["task"]) == (-1.0, 2, "test")
    assert metrics["pearson"] == pytest.approx(1.0)
    assert rank_ablation(samples, scores, "test", 100) == (rows, metrics)
    assert {row["ranked_by"] for row in rows} == {"reward"}
    other, same = rank_ablation(samples, scores, "test", 100, "length")
    assert {row["ranked_by"] for row in other} == {"length"} and same == metrics


def test_the_statistics_of_each_seed_stand_beside_those_of_all():
    rates = {3: (0.9, 0.6, 0.3), 7: (0.3, 0.6, 0.9)}
    samples = {
        (seed, rank): [eval_row(q, q < 30 * rate) for q in range(30)]
        for seed, falling in rates.items()
        for rank, rate in enumerate(falling, start=1)
    }
    scores = {seed: [{"rank": 1, "reward": 0.0}] for seed in rates}
    _, metrics = rank_ablation(samples, scores, "test", 50)
    assert (
        metrics["pearson@3"] == pytest.approx(1.0) and metrics["pearson@7"] == -metrics["pearson@3"]
    )
    for name in STATISTICS:
        for seed in rates:
            assert metrics[f"{name}_low@{seed}"] <= metrics[f"{name}@{seed}"]
    assert metrics["slope_points"] == pytest.approx(0.0, abs=1e-9)


# ---------------------------------------------------------------- rank x seed
def test_the_f_test_of_two_ranks_is_the_paired_t_test():
    marks_SRQ = marks([0.6, 0.5], seeds=5)
    one_S, other_S = marks_SRQ.mean(axis=2).T
    found = rank_seed_test(marks_SRQ)
    paired = stats.ttest_rel(one_S, other_S)
    assert found.p == pytest.approx(paired.pvalue)
    assert found.f == pytest.approx(paired.statistic**2) and found.degrees == (1, 4)


@pytest.mark.parametrize(("of_rank", "least", "most"), [(0.0, 0.01, 0.09), (0.15, 0.9, 1.0)])
def test_the_f_test_keeps_its_level_whatever_seeds_share_and_finds_a_rank_that_is_better(
    of_rank, least, most
):
    """A seed's level and the questions' difficulty are the same for all ranks; each student has
    its own chance."""
    found = []
    for number in range(300):
        rng = np.random.default_rng(number)
        rates = 0.5 + rng.normal(0, 0.1, (5, 1, 1)) + rng.normal(0, 0.2, 50)
        rates = rates + rng.normal(0, 0.03, (5, 16, 1))
        rates[:, 2] += of_rank
        found.append(rank_seed_test(rng.binomial(4, np.clip(rates, 0, 1)) / 4).p)
    assert least <= np.mean(np.array(found) < 0.05) <= most


def test_one_seed_or_rank_has_no_f_test_and_students_all_alike_differ_by_nothing():
    assert rank_seed_test(marks([0.5, 0.5])) is None
    assert rank_seed_test(marks([0.5], seeds=3)) is None
    assert rank_seed_test(np.ones((3, 4, 5))).p == 1.0
    always = np.ones((3, 4, 5))
    always[:, 1] = 0
    assert rank_seed_test(always).p == 0.0
