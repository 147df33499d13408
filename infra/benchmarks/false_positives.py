"""How often the study's tests report a difference between students of equal quality.

    python -m infra.benchmarks.false_positives [TABLE]

TABLE (`random_students.parquet` here) has the answers of the students of randomly ranked traces, by
seed, rank and question. Made from a store in which `rank-ablation` ran:

    rlt sql --output random_students.parquet "
      select seed, regexp_extract(label, 'rank-([0-9]+)', 1)::utinyint as rank, question_id,
        count(*) filter (outcome = 'correct')::utinyint as correct, count(*)::utinyint as samples
      from eval_samples where label like 'evaluation[random-rank-%' and task = 'test'
      group by all order by all"

1. Studies without a difference, resampled from those students. Either each question's answers come
from a random student and a model's level varies from seed to seed by `SPREADS`, or whole students
of a seed are compared as measured. Printed: the share of studies with a smaller p-value than each
threshold, by the study's rules and by the two-way test alone.

2. For each list of seeds in `RUNS`: the F test of rank x seed, and all pairs of random sets. Pairs
share students, so the share below 0.05 varies widely by chance; it is compared with the share after
shuffling the ranks within each seed.

Shapes: S seeds, R ranks, Q questions.
"""

import sys
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rlt_core.evaluation.crossed import crossed_means
from rlt_core.ranking import rank_seed_test

TABLE = Path(__file__).with_name("random_students.parquet")
RUNS = (range(101, 106), range(201, 206))
"""The seeds of the frozen study, and the seeds that were looked at afterwards."""
LEVELS = (0.05, 0.01, 0.005)
SPREADS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05)
"""Standard deviations of a model's rate from seed to seed."""
STUDIES, SHUFFLES = 4000, 400

Counts = NDArray[np.int64]
Shares = NDArray[np.float64]


def read_students(table: Path) -> tuple[list[int], Counts, Counts]:
    """Return seeds, and the correct answers and samples (S, R, Q)."""
    rows = pq.read_table(table).to_pydict()
    names = ("seed", "rank", "question_id")
    axes, places = zip(*(np.unique(rows[name], return_inverse=True) for name in names), strict=True)
    correct_SRQ, samples_SRQ = np.zeros((2, *map(len, axes)), dtype=np.int64)
    correct_SRQ[places], samples_SRQ[places] = rows["correct"], rows["samples"]
    if (samples_SRQ == 0).any():
        sys.exit(f"{table}: a seed, rank or question is missing")
    return axes[0].tolist(), correct_SRQ, samples_SRQ


# ---------------------------------------------------------------- studies without a difference
def resampled(
    correct_SRQ: Counts, samples_SRQ: Counts, seeds: int, spread: float, rng: np.random.Generator
) -> Shares:
    """Return the share of correct answers (2, seeds, Q) of two models that differ by chance and by
    the level of each seed."""
    S, R, Q = correct_SRQ.shape
    questions_Q = rng.integers(Q, size=Q)
    source = rng.integers(S, size=(2, seeds, Q)), rng.integers(R, size=(2, seeds, Q)), questions_Q
    correct, samples = correct_SRQ[source], samples_SRQ[source]
    rate, shift = correct_SRQ.sum() / samples_SRQ.sum(), rng.normal(0, spread, (2, seeds, 1))
    better = rng.binomial(samples - correct, np.clip(shift / (1 - rate), 0, 1))
    worse = rng.binomial(correct, np.clip(-shift / rate, 0, 1))
    return np.asarray((correct + better - worse) / samples)


def measured(
    correct_SRQ: Counts, samples_SRQ: Counts, seeds: int, rng: np.random.Generator
) -> Shares:
    """Return the shares (2, seeds, Q) of two different students of each of some seeds."""
    S, R, _ = correct_SRQ.shape
    chosen_S = rng.choice(S, size=seeds, replace=False)
    ranks_2S = np.array([rng.choice(R, size=2, replace=False) for _ in chosen_S]).T
    return np.asarray(correct_SRQ[chosen_S, ranks_2S] / samples_SRQ[chosen_S, ranks_2S])


def p_values(one_SQ: Shares, other_SQ: Shares) -> tuple[float, float]:
    """Return the p-value of a difference by the rules and by the two-way test alone."""
    both = crossed_means([one_SQ - other_SQ]).contrast([1.0]).p_values()
    return max(both), both[0]


def found(study: Callable[[], Shares]) -> Shares:
    """Return the share of studies with a smaller p-value, (rules or two-way test, level)."""
    p = np.array([p_values(*study()) for _ in range(STUDIES)])
    return np.array([[np.mean(column < level) for level in LEVELS] for column in p.T])


# ---------------------------------------------------------------- all pairs of random sets
def share_of_pairs(values_SRQ: Shares) -> Shares:
    """Return the share of pairs of ranks with p < 0.05, (rules, two-way test alone)."""
    pairs = combinations(range(values_SRQ.shape[1]), 2)
    p = np.array([p_values(values_SRQ[:, one], values_SRQ[:, other]) for one, other in pairs])
    return np.asarray((p < 0.05).mean(axis=0))


def shuffled(values_SRQ: Shares, rng: np.random.Generator) -> Shares:
    """Return the same students with their ranks in a random order within each seed."""
    orders_SR = np.array([rng.permutation(values_SRQ.shape[1]) for _ in values_SRQ])
    return np.take_along_axis(values_SRQ, orders_SR[:, :, None], axis=1)


def describe(name: str, values_SRQ: Shares, rng: np.random.Generator) -> None:
    """Print one run's F test and pairs."""
    test = rank_seed_test(values_SRQ)
    assert test
    seen = share_of_pairs(values_SRQ)
    chance = np.array([share_of_pairs(shuffled(values_SRQ, rng)) for _ in range(SHUFFLES)])
    p = (1 + (chance >= seen - 1e-9).sum(axis=0)) / (1 + SHUFFLES)
    usual = np.quantile(chance, [0.5, 0.95], axis=0)
    print(f"{name}: F({test.degrees[0]}, {test.degrees[1]}) = {test.f:.2f}, p {test.p:.3f}")
    for way, column in (("by the rules", 0), ("two-way test alone", 1)):
        print(
            f"  pairs with p < 0.05, {way}: {100 * seen[column]:.0f}%; shuffled: median "
            f"{100 * usual[0, column]:.0f}%, 95th percentile {100 * usual[1, column]:.0f}%; "
            f"p {p[column]:.3f}"
        )


def main(table: Path) -> None:
    all_seeds, correct_SRQ, samples_SRQ = read_students(table)
    rng, students = np.random.default_rng(0), (correct_SRQ, samples_SRQ)
    _, R, Q = correct_SRQ.shape
    print(f"{len(all_seeds)} seeds x {R} random sets x {Q} questions")
    print("percent of studies that report a difference: by the rules (by the two-way test alone)")
    heads = "".join(f"{f'p < {level:g}':>16}" for level in LEVELS)
    print(f"{'seeds':>5}  {'their spread':12}{heads}")
    for seeds in (5, 10):
        rows: dict[str, Callable[[], Shares]] = {
            f"{100 * spread:.0f} points": partial(resampled, *students, seeds, spread, rng)
            for spread in SPREADS
        }
        if seeds <= len(all_seeds):
            rows["as measured"] = partial(measured, *students, seeds, rng)
        for name, study in rows.items():
            shares = 100 * found(study)
            cells = "".join(f"{f'{own:.2f} ({alone:.2f})':>16}" for own, alone in shares.T)
            print(f"{seeds:5}  {name:12}{cells}")
    values_SRQ = correct_SRQ / samples_SRQ
    means = []
    for run in RUNS:
        chosen = [number for number, seed in enumerate(all_seeds) if seed in run]
        if len(chosen) > 1:
            means.append(values_SRQ[chosen].mean(axis=(0, 2)))
            describe(f"seeds {run[0]}-{run[-1]}", values_SRQ[chosen], rng)
    if len(means) == 2:
        describe("both", values_SRQ, rng)
        print(f"correlation of the means by rank: {np.corrcoef(*means)[0, 1]:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else TABLE)
