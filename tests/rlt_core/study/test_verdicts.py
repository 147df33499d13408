"""Verdicts on models whose truth is known."""

import numpy as np
import pytest
from made_up_study import QUESTIONS, SEEDS, judged, study
from scipy import stats

from rlt_core.errors import UserError
from rlt_core.evaluation.comparisons import difference
from rlt_core.study.evidence import Catalogue, Evidence, Model, NodeEntry
from rlt_core.study.show import cells, pilot_note
from rlt_core.study.verdicts import _equivalence, correlation_p, paired_contrast, rank_slope

BEATS = {"kind": "difference", "ours": "rlt", "theirs": "dataset"}
SHARE = {"kind": "ratio", "ours": "rank-1", "theirs": "dataset", "base": "base", "threshold": 0.9}
RANKS = {"kind": "correlation", "set": "reward"}
CONTROL = {"kind": "equivalence", "ours": "rlt", "theirs": "dataset", "margin": 0.1}


def model(rng, rate, seeds=SEEDS, spread=0.05, questions=40):
    values_SQ = np.clip(rate + rng.normal(0, spread, (len(seeds), 1)), 0, 1)
    values_SQ = rng.binomial(4, np.broadcast_to(values_SQ, (len(seeds), questions))) / 4
    return Model(tuple(seeds), values_SQ)


# ---------------------------------------------------------------- differences
@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [(0.7, 0.5, "holds"), (0.5, 0.7, "refuted"), (0.6, 0.6, "undecided")],
)
def test_a_difference(tmp_path, ours, theirs, verdict):
    (found,) = judged(tmp_path, {"rlt": ours, "dataset": theirs}, BEATS)
    assert found.verdict == verdict
    assert found.estimate == pytest.approx(ours - theirs, abs=0.08)
    ((low, high),) = found.intervals
    assert low < found.estimate < high
    assert found.questions == QUESTIONS
    assert 0 < found.detectable < 0.15


def test_a_margin_must_be_exceeded(tmp_path):
    rates = {"rlt": 0.7, "dataset": 0.5}
    margins = [BEATS | {"margin": margin} for margin in (0.0, 0.1, 0.2, 0.4)]
    found = judged(tmp_path, rates, *margins)
    assert [one.verdict for one in found] == ["holds", "holds", "undecided", "refuted"]
    assert len({one.estimate for one in found}) == 1


def test_several_must_all_be_beaten(tmp_path):
    rates = {"rlt": 0.7, "dataset": 0.5, "raw": 0.3, "near": 0.69, "better": 0.9}
    all_, near, one_better = judged(
        tmp_path, rates,
        BEATS | {"theirs": ["dataset", "raw"]},
        BEATS | {"theirs": ["dataset", "near"]},
        BEATS | {"theirs": ["raw", "better"]},
    )  # fmt: skip
    assert (all_.verdict, near.verdict, one_better.verdict) == ("holds", "undecided", "refuted")
    assert all_.p == max(line.p for line in all_.contrasts)
    assert all_.estimate == min(line.estimate for line in all_.contrasts)


def test_of_several_any_may_refute_but_more_trials_find_more(tmp_path):
    rates = {"rlt": 0.6, "dataset": 0.62, "raw": 0.3, "near": 0.65}
    (found,) = judged(tmp_path, rates, BEATS | {"theirs": ["dataset", "raw", "near"]})
    lost = [line.p for line in found.contrasts if line.estimate < 0]
    assert 0.001 < min(lost) < 0.3
    assert found.p == pytest.approx(3 * min(lost))
    assert found.estimate == min(line.estimate for line in found.contrasts)


def test_a_difference_is_that_of_the_report():
    rng = np.random.default_rng(3)
    ours, theirs = model(rng, 0.6), model(rng, 0.5)
    expected = difference(ours.values_SQ, theirs.values_SQ, paired_seeds=True, resamples=99)
    found = paired_contrast(ours, theirs)
    assert (found.interval(), found.p_value()) == (expected.method, expected.method_p)
    base = model(rng, 0.3, seeds=(None,))
    expected = difference(ours.values_SQ, base.values_SQ, theirs_trained=False, resamples=99)
    found = paired_contrast(ours, base)
    assert (found.interval(), found.p_value()) == (expected.method, expected.method_p)


def test_seeds_that_differ_widely_leave_it_undecided(tmp_path):
    """With the seeds as they are the questions would decide."""
    rates = {"rlt": 0.6, "dataset": 0.5}
    (wide,) = judged(tmp_path / "wide", rates, BEATS, spread=0.25)
    (narrow,) = judged(tmp_path / "narrow", rates, BEATS, spread=0.0)
    assert (wide.verdict, narrow.verdict) == ("undecided", "holds")
    assert wide.detectable > narrow.detectable


# ---------------------------------------------------------------- the family
def test_holm_over_the_claims_primary_and_controls_apart(tmp_path):
    rates = {"rlt": 0.6, "dataset": 0.58, "raw": 0.55, "none": 0.57}
    claims = [
        BEATS | {"primary": True},
        BEATS | {"theirs": "raw"},
        BEATS | {"theirs": "none"},
        CONTROL,
    ]
    primary, one, two, control = judged(tmp_path, rates, *claims)
    assert primary.adjusted_p == primary.p
    assert control.adjusted_p is None
    first, second = sorted((one, two), key=lambda each: each.p)
    assert first.adjusted_p == pytest.approx(2 * first.p)
    assert second.adjusted_p == pytest.approx(max(second.p, 2 * first.p))


def test_the_level_decides(tmp_path):
    (found,) = judged(tmp_path, {"rlt": 0.7, "dataset": 0.5}, BEATS)
    assert 0 < found.p < 0.05
    (strict,) = judged(tmp_path, {"rlt": 0.7, "dataset": 0.5}, BEATS, level=found.p / 2)
    assert strict.verdict == "undecided"


# ---------------------------------------------------------------- ratios
@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [(0.8, 0.5, "holds"), (0.3, 0.7, "refuted"), (0.56, 0.6, "undecided"),
     (0.5, 0.21, "undecided"), (0.5, 0.1, "undecided")],
)  # fmt: skip
def test_a_ratio(tmp_path, ours, theirs, verdict):
    """Where theirs gains nothing, no share of its gain can be shown."""
    (found,) = judged(tmp_path, {"rank-1": ours, "dataset": theirs, "base": 0.2}, SHARE)
    assert found.verdict == verdict
    if verdict != "undecided":
        ((low, high),) = found.intervals
        assert low <= found.estimate <= high
        assert (low > 0.9) if verdict == "holds" else (high < 0.9)


def test_the_p_value_of_a_ratio_fits_its_set(tmp_path):
    rates = {"rank-1": 0.5, "dataset": 0.6, "base": 0.2}
    thresholds = np.linspace(0.5, 1.1, 13)
    claims = [SHARE | {"threshold": float(each)} for each in thresholds]
    for threshold, found in zip(thresholds, judged(tmp_path, rates, *claims), strict=True):
        ((low, high),) = found.intervals
        assert (found.p < 0.05) == (not low < threshold < high)


# ---------------------------------------------------------------- correlations
@pytest.mark.parametrize(
    ("step", "verdict"), [(-0.06, "holds"), (0.06, "refuted"), (0.0, "undecided")]
)
def test_a_correlation(tmp_path, step, verdict):
    rates = {f"rank-{rank}": 0.5 + step * (rank - 3.5) for rank in range(1, 7)}
    rates |= {f"random-rank-{rank}": 0.5 for rank in range(1, 7)}
    (found,) = judged(tmp_path, rates, RANKS)
    assert found.verdict == verdict
    assert [point.rank for point in found.points] == [1, 2, 3, 4, 5, 6]
    ((low, high),) = found.intervals
    assert low <= found.estimate <= high
    (slope,) = found.contrasts
    assert found.p == max(slope.p, correlation_p(found.estimate, low, high))
    if verdict == "undecided":
        assert slope.p > correlation_p(found.estimate, low, high)


def test_the_slope_finds_chance_as_seldom_as_it_says():
    """Students alike but for chance; the bootstrap interval alone finds something in every sixth
    such study."""
    rng = np.random.default_rng(0)
    ranks_R = np.arange(1.0, 9.0)
    below = 0
    for _ in range(200):
        models = [model(rng, 0.5) for _ in ranks_R]
        below += rank_slope(ranks_R, models).p_value() < 0.05
    assert below / 200 < 0.09


def test_the_slope_has_the_sign_of_the_correlation():
    rng = np.random.default_rng(5)
    ranks_R = np.array([1.0, 2.0, 3.0, 5.0])
    for _ in range(20):
        models = [model(rng, 0.5) for _ in ranks_R]
        scores = [one.values_SQ.mean() for one in models]
        slope = rank_slope(ranks_R, models)
        assert slope.value == pytest.approx(-np.polyfit(ranks_R, scores, 1)[0])


def test_p_of_a_correlation_is_where_its_interval_touches_zero():
    assert correlation_p(0.5, 0.0, 0.8) == pytest.approx(0.05, abs=0.02)
    assert correlation_p(0.5, 0.2, 0.72) < 0.05 < correlation_p(0.5, -0.2, 0.86)
    assert correlation_p(0.0, 0.0, 0.0) == 1.0


def test_students_all_alike_decide_nothing(tmp_path):
    rates = {f"rank-{rank}": -9.0 for rank in (1, 2, 3)}
    (found,) = judged(tmp_path, rates, RANKS)
    assert (found.verdict, found.estimate, found.p) == ("undecided", None, 1.0)


# ---------------------------------------------------------------- the negative control
@pytest.mark.parametrize(
    ("theirs", "margin", "verdict"),
    [(0.6, 0.1, "holds"), (0.55, 0.15, "holds"), (0.45, 0.3, "holds"), (0.6, 0.01, "undecided"),
     (0.52, 0.08, "undecided"), (0.3, 0.1, "refuted"), (0.9, 0.1, "refuted")],
)  # fmt: skip
def test_a_negative_control(tmp_path, theirs, margin, verdict):
    (found,) = judged(tmp_path, {"rlt": 0.6, "dataset": theirs}, CONTROL | {"margin": margin})
    assert found.verdict == verdict
    assert found.detectable is not None and found.adjusted_p is None
    ((low, high),) = found.intervals
    assert (verdict == "refuted") == (low > margin or high < -margin)
    (line,) = found.contrasts
    assert (line.p < 0.05) == (not low <= 0 <= high)


def test_a_control_is_two_one_sided_tests():
    rng = np.random.default_rng(1)
    ours, theirs = model(rng, 0.52, spread=0.1), model(rng, 0.5, spread=0.1)
    gains_SQ = ours.values_SQ - theirs.values_SQ
    rng = np.random.default_rng(2)
    gains_SQ = gains_SQ[:, :1] + rng.normal(0, 1e-9, gains_SQ.shape)  # the seeds alone decide
    claim = study(CONTROL).claims[0]
    one, other = Model(SEEDS, gains_SQ), Model(SEEDS, 0 * gains_SQ)
    for margin in (0.05, 0.3, 0.8):
        found = _equivalence(
            claim.model_copy(update={"margin": margin}), {"rlt": one, "dataset": other}, {}, 0.05
        )
        sides = [
            stats.ttest_1samp(gains_SQ.mean(axis=1), end, alternative=side).pvalue
            for end, side in ((-margin, "greater"), (margin, "less"))
        ]
        assert found.p == pytest.approx(max(sides), rel=1e-3)


def test_a_difference_smaller_than_the_margin_passes_the_control_and_is_reported(tmp_path):
    (found,) = judged(tmp_path, {"rlt": 0.6, "dataset": 0.5}, CONTROL | {"margin": 0.3})
    (line,) = found.contrasts
    assert found.verdict == "holds" and found.p < 0.05 and line.p < 0.05


def test_beside_a_control_stands_the_f_test_of_all_ranks_of_its_set(tmp_path):
    rates = {f"random-rank-{rank}": 0.5 for rank in range(1, 7)}
    claim = CONTROL | {"ours": "random-rank-1", "theirs": "random-rank-2"}
    alike, without = judged(tmp_path / "alike", rates, claim | {"set": "random"}, claim)
    assert without.rank_test is None
    assert alike.rank_test.degrees == (5, 20) and alike.rank_test.p > 0.01
    rates["random-rank-5"] = 0.7
    (found,) = judged(tmp_path / "one", rates, claim | {"set": "random"})
    assert found.rank_test.p < 0.001
    assert found.verdict == alike.verdict
    with pytest.raises(UserError, match="three ranks"):
        judged(tmp_path / "none", {**rates, "rlt": 0.5}, claim | {"set": "length"})


def test_fewer_than_ten_seeds_are_a_pilot(tmp_path):
    (found,) = judged(tmp_path, {"rlt": 0.7, "dataset": 0.5}, BEATS)
    assert found.pilot and cells(found)[5] == "holds (pilot)"
    assert "5 seeds, and a claim takes 10" in pilot_note(study(BEATS))
    ten = study(BEATS, seeds=tuple(range(10)))
    assert not ten.pilot and not pilot_note(ten)


# ---------------------------------------------------------------- tables that do not allow one
def test_what_is_missing_is_named(tmp_path):
    rates = {"rlt": 0.6, "dataset": 0.5, "rank-1": 0.4}
    with pytest.raises(UserError, match=r"'c0': theirs: .*'nothing'.*dataset.*rank-N"):
        judged(tmp_path, rates, BEATS | {"theirs": "nothing"})
    with pytest.raises(UserError, match="three ranks"):
        judged(tmp_path, rates, RANKS)
    with pytest.raises(UserError, match="no graded answer of the task 'aime24'"):
        judged(tmp_path, rates, BEATS | {"task": "aime24"})
    with pytest.raises(UserError, match="seeds of 'rlt' are missing or too many"):
        judged(tmp_path, rates, BEATS, seeds=(*SEEDS, 99))


def test_answers_of_another_model_are_refused(tmp_path):
    judged(tmp_path, {"rlt": 0.6, "dataset": 0.5}, BEATS)
    entries = [
        NodeEntry(name=f"{v}-{s}", key=f"{v}-{s}", stage="evaluation", variant=v, seed=s,
                  inputs={"model": "another"})
        for v in ("rlt", "dataset") for s in SEEDS
    ]  # fmt: skip
    with pytest.raises(UserError, match="tests another"):
        Evidence(tmp_path, Catalogue(entries), one := study(BEATS)).models(one.claims[0])


def test_two_models_of_one_name_are_refused():
    entries = [
        NodeEntry(name=key, key=key, stage="evaluation", variant="rlt", seed=11, inputs={})
        for key in ("a", "b")
    ]
    with pytest.raises(UserError, match="in two ways"):
        Catalogue(entries).model(study(BEATS).claims[0], "ours", "rlt")
