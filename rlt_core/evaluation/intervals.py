"""Scores with 95% intervals that know that completions of one question belong together.

Shapes: Q questions. A question is one independent observation: the mean of its completions for
avg@n, its unbiased estimate for pass@k. The interval of the mean over questions is Wilson's score
interval (Wilson 1927) at the effective sample size p(1 - p) / Var(mean), Var being the variance
between questions over Q, reduced by (z / t)^2 for having estimated it with Q - 1 degrees of
freedom: Korn & Graubard, "Confidence intervals for proportions with small expected number of
positive counts estimated from survey data", Survey Methodology 24 (1998); Dean & Pagano,
J. Survey Statistics and Methodology 3 (2015), find its coverage good in small clustered samples.
Wilson's interval has a width even where all questions agree, which a bootstrap has not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over questions, as a fraction."""

    value: float
    low: float
    high: float
    questions: int


def clustered_mean(values_Q: Sequence[float], completions: int) -> Estimate | None:
    """Mean of one value in [0, 1] a question with its 95% interval; None without questions.

    `completions`: of all questions together; bounds the effective sample size from above.
    A single question says nothing about others: its interval is [0, 1].
    """
    values = np.asarray(values_Q, dtype=np.float64)
    questions = len(values)
    if questions == 0:
        return None
    mean = float(values.mean())
    if questions == 1:
        return Estimate(mean, 0.0, 1.0, 1)
    z = float(ndtri(0.5 + CONFIDENCE / 2))
    t = float(stdtrit(questions - 1, 0.5 + CONFIDENCE / 2))
    size = _effective_size(mean, float(values.var(ddof=1)) / questions, questions, completions)
    low, high = _wilson(mean, size * (z / t) ** 2, z)
    return Estimate(mean, low, high, questions)


def _effective_size(mean: float, variance: float, questions: int, completions: int) -> float:
    """Independent draws that would know the mean as well as these questions do.

    Where all questions agree on 0 or 1 the variance between them cannot be seen; a question then
    counts once, however many completions it has.
    """
    binomial = mean * (1 - mean)
    if binomial <= 0:
        return float(questions)
    return min(binomial / variance, completions) if variance > 0 else float(completions)


def _wilson(p: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's score interval for a fraction p of n draws."""
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, float(min(p, middle - half))), min(1.0, float(max(p, middle + half)))


def pass_at_k(correct: int, n: int, k: int) -> float:
    """Unbiased probability that one of k completions is correct, from n >= k of which `correct`
    are: 1 - C(n - correct, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, eq. 1)."""
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} completions, not {n}")
    if n - correct < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - correct + 1, n + 1)))
