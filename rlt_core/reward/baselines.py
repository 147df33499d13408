"""Scores of a trace's quality that rival the RLT reward; pure.

The rest of them are parts of the reward itself (r_SS, r_KL) and the explanation's length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

RANK_CLIP = 100
"""Ranks beyond it count as this (arXiv 2601.14249)."""


def mean_likelihood(student_think_logprobs: ArrayLike) -> float | None:
    """mean_t log pi_S(t | q), in nats a token; None for an empty explanation."""
    logprobs_T = np.asarray(student_think_logprobs, dtype=np.float64)
    return float(logprobs_T.mean()) if logprobs_T.size else None


def rank_surprisal_ratio(ranks: ArrayLike, surprisal: ArrayLike) -> float | None:
    """sum_t min(rank_t, 100) / sum_t surprisal_t of the explanation under the student.

    `ranks` (T,): 1 for the likeliest word; `surprisal` (T,): -log p at temperature 1, in nats.
    Lower is better (arXiv 2601.14249, eq. of RSR). None where it is not defined: an empty
    explanation, or no surprise at all.
    """
    ranks_T = np.minimum(np.asarray(ranks, dtype=np.float64), RANK_CLIP)
    total = float(np.asarray(surprisal, dtype=np.float64).sum())
    return float(ranks_T.sum()) / total if ranks_T.size and total > 0 else None
