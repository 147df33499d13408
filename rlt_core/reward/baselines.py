"""Baselines for the RLT reward: other scores of a trace's quality, as pure functions.

The remaining baselines are parts of the reward (r_SS, r_KL) and the explanation's length.
"""

import numpy as np
from numpy.typing import ArrayLike

RANK_CLIP = 100
"""Larger ranks count as this (arXiv 2601.14249)."""


def mean_likelihood(student_think_logprobs: ArrayLike) -> float | None:
    """Return mean_t log pi_S(t | q), in nats per token; None for an empty explanation."""
    logprobs_T = np.asarray(student_think_logprobs, dtype=np.float64)
    return float(logprobs_T.mean()) if logprobs_T.size else None


def rank_surprisal_ratio(ranks: ArrayLike, surprisal: ArrayLike) -> float | None:
    """Return sum_t min(rank_t, 100) / sum_t surprisal_t of the explanation under the student.

    `ranks` (T,): 1 for the likeliest word; `surprisal` (T,): -log p at temperature 1, in nats.
    Lower is better (arXiv 2601.14249, eq. of RSR). None if it is undefined: for an empty
    explanation, or without any surprisal.
    """
    ranks_T = np.minimum(np.asarray(ranks, dtype=np.float64), RANK_CLIP)
    total = float(np.asarray(surprisal, dtype=np.float64).sum())
    return float(ranks_T.sum()) / total if ranks_T.size and total > 0 else None
