"""Comparisons of models: intervals cover, tests keep their level, references agree, and what
cannot be said is not said."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlt_core.evaluation.comparisons import (
    cluster_bootstrap,
    detectable_difference,
    difference,
    gain_ratio,
    holm,
    mcnemar_p,
    permutation_p,
)
from rlt_core.evaluation.crossed import (
    checkpoint_score,
    crossed_mean,
    crossed_means,
    method_score,
    question_means,
    shared_questions,
)

NAN = float("nan")


def study(
    rng: np.random.Generator, seeds: int, questions: int, samples: int, spread: float, mean=0.5
):
    """Outcomes (S, Q, N): difficulty differs by question, level by seed."""
    difficulty_Q = rng.uniform(-0.3, 0.3, questions)
    level_S = rng.normal(0, spread, seeds)
    rate_SQ = np.clip(mean + difficulty_Q + level_S[:, None], 0, 1)
    return (rng.random((seeds, questions, samples)) < rate_SQ[:, :, None]).astype(float)


# ---------------------------------------------------------------- scores
def test_the_methods_interval_covers_the_mean_of_other_seeds_where_others_are_too_narrow():
    covered = {"method": 0, "checkpoint": 0, "bootstrap": 0}
    studies = 400
    for number in range(studies):
        rng = np.random.default_rng(number)
        correct_SQN = study(rng, 3, 100, 4, 0.08)
        values_SQ = question_means(correct_SQN)
        method, checkpoint = method_score(correct_SQN), checkpoint_score(correct_SQN[0])
        seeds_BS = rng.multinomial(3, np.full(3, 1 / 3), 200) / 3
        questions_BQ = rng.multinomial(100, np.full(100, 1 / 100), 200) / 100
        drawn_B = ((seeds_BS @ values_SQ) * questions_BQ).sum(axis=1)
        low, high = np.quantile(drawn_B, [0.025, 0.975])
        covered["method"] += method.low <= 0.5 <= method.high
        covered["checkpoint"] += checkpoint.low <= 0.5 <= checkpoint.high
        covered["bootstrap"] += low <= 0.5 <= high
    assert covered["method"] >= 0.89 * studies  # 0.92 over 1000 studies, 0.95 nominal
    assert covered["bootstrap"] <= covered["method"] - 0.03 * studies
    assert covered["checkpoint"] <= 0.7 * studies


def test_one_seed_defines_a_checkpoint_and_no_method():
    correct_SQN = study(np.random.default_rng(0), 1, 30, 4, 0.0)
    assert method_score(correct_SQN) is None
    assert checkpoint_score(correct_SQN[0]).value == pytest.approx(correct_SQN.mean())


def test_scores_that_are_all_right_keep_a_width_below_and_one_question_says_nothing():
    perfect = method_score(np.ones((3, 30, 4)))
    assert perfect.value == perfect.high == 1 and perfect.low < 0.95
    alone = method_score(np.ones((3, 1, 4)))
    assert (alone.low, alone.high, alone.questions) == (0, 1, 1)


def test_ungraded_samples_and_questions_are_left_out_of_scores():
    correct_SQN = study(np.random.default_rng(1), 2, 20, 3, 0.05)
    holes = np.concatenate([correct_SQN, np.full((2, 20, 2), NAN)], axis=2)
    holes = np.concatenate([holes, np.full((2, 1, 5), NAN)], axis=1)
    assert method_score(holes) == method_score(correct_SQN)
    assert checkpoint_score(holes[0]) == checkpoint_score(correct_SQN[0])
    assert checkpoint_score(np.full((4, 2), NAN)) is None
    assert method_score(np.full((2, 4, 2), NAN)) is None


def test_the_variance_is_that_of_many_simulated_studies():
    """Two models, independent seeds, shared questions: the estimate is right on average."""
    found, values = [], []
    for number in range(400):
        rng = np.random.default_rng(number)
        difficulty_Q = rng.uniform(-0.2, 0.2, 25)
        sides = []
        for seeds, spread in ((3, 0.1), (4, 0.05)):
            level_S = rng.normal(0, spread, seeds)
            own_Q = rng.uniform(-0.1, 0.1, 25) if seeds == 3 else 0
            rate_SQ = np.clip(0.5 + difficulty_Q + own_Q + level_S[:, None], 0, 1)
            sides.append(rng.binomial(4, rate_SQ) / 4)
        contrast = crossed_means(sides).contrast([1, -1])
        found.append(contrast.tests[0][0])
        values.append(contrast.value)
    assert np.mean(found) == pytest.approx(np.var(values), rel=0.15)


# ---------------------------------------------------------------- seeds that seem to agree
LEVELS = (0.05, 0.01, 0.005)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("points", range(6))
def test_no_more_is_found_where_nothing_is_than_the_level_says(points, paired):
    rng = np.random.default_rng(points)
    studies, found = 600, []
    for _ in range(studies):
        difficulty_Q = rng.normal(0, 0.2, 200)
        one, other = (
            rng.binomial(4, np.clip(0.3 + difficulty_Q + rng.normal(0, points / 100, (5, 1)), 0, 1))
            / 4
            for _ in range(2)
        )
        contrast = (
            crossed_means([one - other]).contrast([1])
            if paired
            else crossed_means([one, other]).contrast([1, -1])
        )
        found.append(contrast.p_value())
    for level in LEVELS:
        most = stats.binom.isf(0.001, studies, level) / studies
        assert np.mean(np.array(found) < level) <= most


def alike(rng, seeds=5, questions=100):
    """Differences whose seeds vary less than their answers let them."""
    return rng.permuted(np.tile(rng.normal(0.02, 0.3, questions), (seeds, 1)), axis=1)


def test_where_the_seeds_component_is_not_positive_the_larger_p_and_the_wider_interval_count():
    gains_SQ = alike(np.random.default_rng(0))
    gains_SQ += np.array([-0.001, 0.001, 0, 0.002, -0.002])[:, None]
    contrast = crossed_means([gains_SQ]).contrast([1])
    seeds_S = gains_SQ.mean(axis=1)
    two_way, alone = contrast.p_values()
    assert two_way == pytest.approx(stats.ttest_1samp(gains_SQ.mean(axis=0), 0).pvalue)
    assert alone == pytest.approx(stats.ttest_1samp(seeds_S, 0).pvalue)
    assert contrast.p_value() == max(two_way, alone)
    interval = contrast.interval()
    for values in (gains_SQ.mean(axis=0), seeds_S):
        low, high = stats.ttest_1samp(values, 0).confidence_interval()
        assert interval.low <= low + 1e-9 and high - 1e-9 <= interval.high
    assert (contrast.p_value() < 0.05) == (not interval.low <= 0 <= interval.high)


def test_seeds_that_clearly_differ_need_no_second_test():
    gains_SQ = alike(np.random.default_rng(0)) + np.linspace(-0.3, 0.3, 5)[:, None]
    assert len(crossed_means([gains_SQ]).contrast([1]).p_values()) == 1
    one_seed = crossed_means([gains_SQ[:1]]).contrast([1])
    assert len(one_seed.p_values()) == 1


@pytest.mark.parametrize("number", range(10))
def test_the_set_of_a_ratio_holds_what_no_test_rejects(number):
    ours, theirs, base = models(np.random.default_rng(number), (0.2, 0.25), 50, 3)
    found, means = gain_ratio(ours, theirs, base), crossed_means([ours, theirs, base])
    for ratio in np.linspace(0.3, 1.5, 25):
        gains_K = [1, 0, -1], [0, 1, -1]
        p = means.contrast([1, -ratio, ratio - 1], fewest=gains_K).p_value()
        assert (p >= 0.05) == any(low <= ratio <= high for low, high in found.intervals)


# ---------------------------------------------------------------- differences
@given(st.lists(st.integers(-4, 4).map(lambda gain: gain / 4), min_size=1, max_size=10))
def test_the_permutation_test_is_exact_for_few_questions(gains):
    gain_Q = np.array(gains)
    signs = np.array(list(itertools.product([1, -1], repeat=len(gains))))
    wanted = (np.abs(signs @ gain_Q) >= abs(gain_Q.sum()) - 1e-9).mean()
    assert permutation_p(gain_Q) == pytest.approx(wanted)
    assert permutation_p(-gain_Q) == pytest.approx(wanted)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_mcnemar_is_the_permutation_test_of_one_binary_answer(answers):
    ours_Q, theirs_Q = np.array(answers, dtype=float).T
    assert mcnemar_p(ours_Q, theirs_Q) == pytest.approx(permutation_p(ours_Q - theirs_Q))


def test_mcnemar_leaves_out_ungraded_questions_and_refuses_several_answers():
    ours_Q, theirs_Q = np.array([1, 1, 1, 1, 1, 0, NAN]), np.array([0, 0, 0, 0, 1, NAN, 1.0])
    assert mcnemar_p(ours_Q, theirs_Q) == pytest.approx(2 / 2**4)
    with pytest.raises(ValueError, match="one answer a question"):
        mcnemar_p(np.array([0.5, 1.0]), np.array([0.0, 1.0]))


def test_a_permutation_test_of_many_questions_is_close_to_the_t_test_and_never_0():
    rng = np.random.default_rng(3)
    gain_Q = rng.normal(0.05, 0.3, 200)
    assert permutation_p(gain_Q, 4000) == pytest.approx(
        stats.ttest_1samp(gain_Q, 0).pvalue, abs=0.02
    )
    assert permutation_p(gain_Q, 4000) == permutation_p(gain_Q, 4000)
    assert 0 < permutation_p(np.ones(200), 500) <= 2 / 501


def test_the_cluster_bootstrap_covers_with_thirty_questions():
    covered = 0
    for number in range(400):
        gain_Q = np.random.default_rng(number).choice(
            [-0.5, 0.0, 0.5, 1.0], 30, p=[0.2, 0.3, 0.3, 0.2]
        )
        estimate = cluster_bootstrap(gain_Q, 999)
        covered += estimate.low <= 0.25 <= estimate.high
    assert 0.93 <= covered / 400 <= 0.98


def test_a_difference_has_two_intervals_where_seeds_are_several():
    rng = np.random.default_rng(4)
    ours, theirs = (question_means(study(rng, 3, 60, 4, 0.1, mean)) for mean in (0.6, 0.5))
    found = difference(ours, theirs, resamples=999)
    assert found.checkpoint.value == pytest.approx(found.method.value)
    width = found.checkpoint.high - found.checkpoint.low
    assert found.method.high - found.method.low > 1.5 * width
    assert found.method_p > found.checkpoint_p
    swapped = difference(theirs, ours, resamples=999)
    assert swapped.method.low == pytest.approx(-found.method.high)
    assert swapped.checkpoint_p == found.checkpoint_p


def test_what_paired_seeds_share_is_no_noise_and_the_pairing_is_that_of_the_mean_difference():
    rng = np.random.default_rng(5)
    level_S = rng.normal(0, 0.2, 4)[:, None]
    ours = 0.7 + level_S + rng.normal(0, 0.02, (4, 50))
    theirs = 0.5 + level_S + rng.normal(0, 0.02, (4, 50))
    paired, unpaired = (difference(ours, theirs, each, resamples=99) for each in (True, False))
    wanted = crossed_mean(ours - theirs)
    assert vars(paired.method) == pytest.approx(vars(wanted))
    assert paired.method.low > 0.15 and unpaired.method.low < 0
    with pytest.raises(ValueError, match="cannot be paired"):
        difference(ours, theirs[:2], paired_seeds=True)


def test_one_trained_seed_knows_nothing_of_the_method_but_the_base_has_no_seeds_to_know():
    ours, base = np.random.default_rng(6).random((3, 20)), np.full((1, 20), 0.5)
    assert difference(ours, base, resamples=99).method is None
    assert difference(ours, base, theirs_trained=False, resamples=99).method is not None
    assert difference(base, ours, resamples=99).method_p is None


def test_differences_use_the_questions_that_both_were_graded_on():
    ours = np.array([[1.0, 1.0, NAN, 0.5]])
    theirs = np.array([[0.0, NAN, 0.0, 0.5]])
    found = difference(ours, theirs, resamples=99)
    assert (found.checkpoint.value, found.checkpoint.questions) == (0.5, 2)
    with pytest.raises(ValueError, match="no question in common"):
        difference(ours[:, 1:2], theirs[:, 1:2])
    with pytest.raises(ValueError, match="different numbers"):
        shared_questions(ours, theirs[:, :3])


def test_models_that_are_alike_differ_by_nothing_and_one_question_has_no_interval():
    same = difference(np.ones((2, 10)), np.ones((2, 10)))
    assert (same.checkpoint.low, same.checkpoint.high, same.checkpoint_p) == (0, 0, 1)
    assert (same.method_p, same.detectable) == (1, None)
    alone = difference(np.ones((1, 1)), np.zeros((1, 1)))
    assert alone.checkpoint.low == -np.inf and alone.checkpoint_p == 1
    assert alone.detectable is None


# ---------------------------------------------------------------- many tests, power
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_stepwise_procedure_rejects(values):
    names = [str(number) for number in range(len(values))]
    adjusted = holm(dict(zip(names, values, strict=True)))
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for step, name in enumerate(sorted(names, key=lambda name: values[int(name)])):
            if values[int(name)] * (len(values) - step) > level:
                break
            rejected.add(name)
        assert rejected == {name for name in names if adjusted[name] <= level}


def test_the_primary_contrast_is_neither_adjusted_nor_counted():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06}
    )
    found = holm({"a": 0.01, "b": 0.04, "main": 0.04, "c": 0.03}, "main")
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "main": 0.04, "c": 0.06})
    assert list(found) == ["a", "b", "main", "c"]
    with pytest.raises(ValueError, match="primary"):
        holm({"a": 0.01}, "main")
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm({"a": NAN})


@pytest.mark.parametrize("questions", [30, 200])
def test_a_detectable_difference_is_detected_in_80_percent_of_studies(questions):
    sd = 0.4
    spread = np.resize([-sd, sd], questions)
    delta = detectable_difference(spread)
    rng = np.random.default_rng(7)
    gains = rng.normal(delta, spread.std(ddof=1), (4000, questions))
    power = (stats.ttest_1samp(gains, 0, axis=1).pvalue < 0.05).mean()
    assert power == pytest.approx(0.8, abs=0.025)
    assert detectable_difference(np.resize(spread, 4 * questions)) == pytest.approx(
        delta / 2, rel=0.06
    )


# ---------------------------------------------------------------- ratios
def models(rng, gains, questions=200, seeds=1):
    base = rng.uniform(0.1, 0.4, (1, questions))
    made = [base + gain + rng.normal(0, 0.1, (seeds, questions)) for gain in gains]
    return (*made, base)


def test_a_ratio_with_a_clear_denominator_is_that_of_resampling_both_together():
    ours, theirs, base = models(np.random.default_rng(8), (0.27, 0.3))
    found = gain_ratio(ours, theirs, base)
    draws_BQ = np.random.default_rng(0).multinomial(200, np.full(200, 1 / 200), 4000)
    top_B, bottom_B = draws_BQ @ (ours - base)[0], draws_BQ @ (theirs - base)[0]
    assert found.bounded and not found.seeds_random
    assert found.intervals[0] == pytest.approx(
        np.quantile(top_B / bottom_B, [0.025, 0.975]), abs=0.01
    )


def test_the_set_of_a_ratio_covers_also_with_an_unclear_denominator_and_over_seeds():
    covered, unbounded = 0, 0
    for number in range(400):
        ours, theirs, base = models(np.random.default_rng(number), (0.03, 0.06), 20, 2 + number % 2)
        found = gain_ratio(ours, theirs, base)
        assert found.seeds_random
        covered += any(low <= 0.5 <= high for low, high in found.intervals)
        unbounded += not found.bounded
    assert covered / 400 >= 0.93
    assert 0 < unbounded < 400


def test_a_denominator_that_may_be_0_is_not_hidden():
    rng = np.random.default_rng(9)
    base = np.full((1, 50), 0.3)
    nothing, much = rng.normal(0.301, 0.1, (1, 50)), rng.normal(0.6, 0.1, (1, 50))
    rays = gain_ratio(much, nothing, base)
    assert len(rays.intervals) == 2 and not rays.bounded
    (start, high), (low, end) = rays.intervals
    assert start == -np.inf and end == np.inf and high < low
    assert rays.denominator.low < 0 < rays.denominator.high
    line = gain_ratio(nothing, rng.normal(0.3, 0.1, (1, 50)), base)
    assert line.intervals == ((-np.inf, np.inf),)
    undefined = gain_ratio(much, base, base)
    assert undefined.value is None and not undefined.bounded
    assert not gain_ratio(much[:, :1], nothing[:, :1], base[:, :1]).bounded


def test_a_model_recovers_all_of_its_own_gain():
    ours, _, base = models(np.random.default_rng(10), (0.3, 0.3))
    found = gain_ratio(ours, ours, base)
    assert found.value == 1 and found.intervals[0] == pytest.approx((1, 1))
