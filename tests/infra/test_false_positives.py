"""The students of the simulated studies differ by what they are said to differ by."""

import numpy as np
import pytest

from infra.benchmarks.false_positives import (
    TABLE,
    measured,
    read_students,
    resampled,
    share_of_pairs,
    shuffled,
)


def students() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    rate_SRQ = np.clip(0.3 + rng.normal(0, 0.2, 200) + rng.normal(0, 0.05, (6, 16, 1)), 0, 1)
    return rng.binomial(4, rate_SRQ), np.full(rate_SRQ.shape, 4)


@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_resampled_models_are_alike_and_their_seeds_differ_as_asked(spread: float) -> None:
    rng = np.random.default_rng(1)
    values = np.array([resampled(*students(), 10, spread, rng) for _ in range(60)])
    assert values.shape == (60, 2, 10, 200)
    assert values.min() >= 0 and values.max() <= 1
    level = values.mean(axis=3)
    gains = level[:, 0] - level[:, 1]
    assert gains.mean() == pytest.approx(0, abs=4 * gains.std() / np.sqrt(gains.size))
    chance = 0.016**2  # of 200 questions with four answers
    assert level.std(axis=2, ddof=1).mean() == pytest.approx(np.sqrt(spread**2 + chance), rel=0.15)


def test_measured_students_are_two_of_one_seed() -> None:
    correct_SRQ, samples_SRQ = students()
    correct_SRQ[:] = np.arange(6)[:, None, None] % 5
    one_SQ, other_SQ = measured(correct_SRQ, samples_SRQ, 5, np.random.default_rng(0))
    assert one_SQ.shape == (5, 200) and (one_SQ == other_SQ).all()


def test_shuffled_ranks_keep_each_seed_s_students() -> None:
    correct_SRQ, samples_SRQ = students()
    values_SRQ = correct_SRQ / samples_SRQ
    moved = shuffled(values_SRQ, np.random.default_rng(0))
    for before, after in zip(values_SRQ, moved, strict=True):
        assert sorted(map(tuple, before)) == sorted(map(tuple, after))
    rules, alone = share_of_pairs(moved)
    assert 0 <= rules <= alone < 0.3


def test_the_committed_table_is_whole() -> None:
    seeds, correct_SRQ, samples_SRQ = read_students(TABLE)
    assert set(range(101, 106)) <= set(seeds)
    assert correct_SRQ.shape[1:] == (16, 200)
    assert (samples_SRQ == 4).all() and (correct_SRQ <= samples_SRQ).all()
