"""How often a study's test of a difference finds one where there is none (p < 0.05).

    python -m infra.benchmarks.false_positives            # simulated students
    python -m infra.benchmarks.false_positives STORE 101,102,103,104,105 [201,…]

With a store: every pair of students of randomly ranked traces (`rank-ablation`, set `random`), of
equal quality, for each list of seeds.
"""

from __future__ import annotations

import sys
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from rlt_core.evaluation.crossed import crossed_means
from rlt_core.store import Store
from rlt_core.tables import connect

LEVEL = 0.05
STUDIES, SEEDS, QUESTIONS, SAMPLES = 1500, 5, 200, 4
SPREADS = (0.0, 0.02, 0.05)
"""Standard deviation of a model's rate from seed to seed."""

Values = NDArray[np.float64]


def p_value(one_SQ: Values, other_SQ: Values) -> float:
    """Of no difference, seeds paired."""
    return crossed_means([one_SQ - other_SQ]).contrast([1.0]).p_value()


def simulated(spread: float, rng: np.random.Generator) -> float:
    """Share of studies of two alike models in which the test finds a difference."""

    def model(difficulty_Q: Values) -> Values:
        rate_SQ = 0.3 + difficulty_Q + rng.normal(0, spread, (SEEDS, 1))
        return np.asarray(rng.binomial(SAMPLES, np.clip(rate_SQ, 0, 1)) / SAMPLES)

    found = 0
    for _ in range(STUDIES):
        difficulty_Q = rng.normal(0, 0.2, QUESTIONS)
        found += p_value(model(difficulty_Q), model(difficulty_Q)) < LEVEL
    return found / STUDIES


def of_random_sets(store: str, seeds: list[int]) -> Values:
    """Share of correct answers of the student of each randomly drawn set, (rank, S, Q)."""
    query = """
        select label, seed, question_id, avg((outcome = 'correct')::int) from eval_samples
        where label like 'evaluation[random-rank-%' and task = 'test' and list_contains(?, seed)
        group by all
    """
    rows = connect(Store(store)).execute(query, [seeds]).fetchall()
    means = {(label, seed, question): value for label, seed, question, value in rows}
    if missing := set(seeds) - {seed for _, seed, _ in means}:
        sys.exit(f"{store} has no students of random sets of seeds {sorted(missing)}")
    labels, _, questions = (sorted(set(column)) for column in zip(*means, strict=True))
    labels.sort(key=lambda label: (len(label), label))  # rank-2 before rank-10
    return np.array([[[means[a, s, q] for q in questions] for s in seeds] for a in labels])


def main(store: str | None, groups: list[list[int]]) -> None:
    """Print the shares."""
    if store is None:
        rng = np.random.default_rng(0)
        for spread in SPREADS:
            print(f"seeds differ by {100 * spread:.0f} points: {100 * simulated(spread, rng):.1f}%")
        return
    ranks = []
    for seeds in groups:
        values = of_random_sets(store, seeds)
        p = [p_value(one, other) for one, other in combinations(values, 2)]
        ranks.append(values.mean(axis=(1, 2)))
        first = 100 * (ranks[-1][0] - ranks[-1][1])
        share = 100 * np.mean(np.array(p) < LEVEL)
        print(
            f"seeds {seeds}: {share:.0f}% of {len(p)} pairs; rank 1 - rank 2: {first:+.1f} points"
        )
    for one, other in combinations(ranks, 2):
        print(f"correlation of the means by rank: {np.corrcoef(one, other)[0, 1]:.2f}")


if __name__ == "__main__":
    main(
        sys.argv[1] if sys.argv[1:] else None,
        [[int(seed) for seed in group.split(",")] for group in sys.argv[2:]],
    )
