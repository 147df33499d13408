"""The committed answers of the false-positive benchmark, and models that differ by chance only."""

import numpy as np
import pytest

from infra.benchmarks.false_positives import TABLE, read_students, resampled


def test_the_committed_table_is_whole_and_resampled_models_are_alike() -> None:
    seeds, correct_SRQ, samples_SRQ = read_students(TABLE)
    assert set(range(101, 106)) <= set(seeds)
    assert correct_SRQ.shape[1:] == (16, 200)
    assert (samples_SRQ == 4).all() and (correct_SRQ <= samples_SRQ).all()
    rng = np.random.default_rng(1)
    values = np.array([resampled(correct_SRQ, samples_SRQ, 10, 0.05, rng) for _ in range(60)])
    assert values.shape == (60, 2, 10, 200) and values.min() >= 0 and values.max() <= 1
    gains = values.mean(axis=3)[:, 0] - values.mean(axis=3)[:, 1]
    assert gains.mean() == pytest.approx(0, abs=4 * gains.std() / np.sqrt(gains.size))
