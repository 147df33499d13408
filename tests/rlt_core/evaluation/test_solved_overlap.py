"""Overlap of solved sets: right on plain sets, chance where it belongs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_core.evaluation.overlap import MEASURES, overlap

NAN = float("nan")
sets = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20)


@given(sets)
def test_with_one_sample_the_measures_are_those_of_the_sets(answers):
    correct_QM = np.array(answers, dtype=float)
    ours, theirs = ({q for q, solved in enumerate(each) if solved} for each in correct_QM.T)
    found = overlap(correct_QM[:, :1], correct_QM[:, 1:], 100)
    both = len(ours & theirs)
    assert (found.ours, found.theirs, found.both) == (len(ours), len(theirs), both)
    wholes = dict(zip(MEASURES, (len(ours), len(theirs), len(ours | theirs)), strict=True))
    assert set(found.measures) == {name for name, whole in wholes.items() if whole}
    for name, measure in found.measures.items():
        assert measure.value == pytest.approx(both / wholes[name])
        assert measure.low <= measure.value <= measure.high


def samples(rng, rate_Q, n):
    return (rng.random((len(rate_Q), n)) < rate_Q[:, None]).astype(float)


def test_unrelated_models_overlap_as_chance_has_it():
    rng = np.random.default_rng(0)
    ours, theirs = (samples(rng, rng.beta(1, 1, 4000), 4) for _ in range(2))
    for measure in overlap(ours, theirs, 99).measures.values():
        assert measure.value == pytest.approx(measure.chance, abs=0.02)


def test_the_interval_of_the_jaccard_index_covers():
    truth_Q = np.random.default_rng(0).beta(0.7, 0.7, 100_000)
    other_Q = np.clip(truth_Q + 0.1, 0, 1)
    both = (truth_Q * other_Q).mean()
    truth = both / (truth_Q.mean() + other_Q.mean() - both)
    covered = 0
    for study in range(200):
        rng = np.random.default_rng(study)
        chosen = rng.integers(0, 100_000, 60)
        jaccard = overlap(
            samples(rng, truth_Q[chosen], 2), samples(rng, other_Q[chosen], 2), 300
        ).measures["jaccard"]
        covered += jaccard.low <= truth <= jaccard.high
    assert covered >= 180  # 190 nominal


def test_the_sides_are_mirror_images_and_the_result_repeats():
    rng = np.random.default_rng(1)
    ours, theirs = samples(rng, rng.random(30), 3), samples(rng, rng.random(30), 5)
    one, other = overlap(ours, theirs, 100), overlap(theirs, ours, 100)
    assert one.measures["ours_in_theirs"].value == other.measures["theirs_in_ours"].value
    assert overlap(ours, theirs, 100) == one


def test_ungraded_samples_are_left_out():
    rng = np.random.default_rng(2)
    ours, theirs = samples(rng, rng.random(30), 3), samples(rng, rng.random(30), 3)
    holes = np.concatenate([ours, np.full((30, 2), NAN)], axis=1)
    assert overlap(holes, theirs, 50) == overlap(ours, theirs, 50)
    holes[5:] = NAN
    assert overlap(holes, theirs, 50).questions == 5
    with pytest.raises(ValueError, match="no question in common"):
        overlap(np.full((30, 1), NAN), theirs)
    with pytest.raises(ValueError, match="different numbers"):
        overlap(ours[:4], theirs)


def test_models_that_solve_everything_overlap_wholly_which_is_chance():
    found = overlap(np.ones((10, 2)), np.ones((10, 2)), 50)
    for measure in found.measures.values():
        assert measure.value == measure.chance == 1
