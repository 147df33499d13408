"""Overlap of the problems that two models solve (paper: the countdown experiment).

Shapes: Q questions, N samples of one model, B resamples. A solved set consists of the questions
solved with one sample each; sizes and overlaps are averages over all samples. With rates p and r
of correct samples: |ours| = sum p, |theirs| = sum r, |both| = sum p r.
"""

from dataclasses import dataclass

import numpy as np

from rlt_core.evaluation.crossed import Floats, question_means
from rlt_core.evaluation.intervals import CONFIDENCE

MEASURES = ("ours_in_theirs", "theirs_in_ours", "jaccard")
RESAMPLES = 2000
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


@dataclass(frozen=True)
class Measure:
    """A fraction of a solved set, with its 95% interval from resampling questions."""

    value: float
    low: float
    high: float
    chance: float
    """Its mean if the same solve rates are assigned to random questions."""
    chance_low: float
    chance_high: float
    """Range of 95% of such permutations."""
    p: float
    """One-sided p-value of such a permutation test; the observed value counts, so it is never 0."""
    ceiling_ours: float | None
    ceiling_theirs: float | None
    """The same measure between two samples of one model; None with one sample per question."""


@dataclass(frozen=True)
class Overlap:
    """The solved sets of two models and their overlap."""

    questions: int
    """Questions with a graded sample of both models."""
    ours: float
    theirs: float
    both: float
    """Sizes of the solved sets and of their intersection, in questions."""
    measures: dict[str, Measure]
    """By name of `MEASURES`, without fractions of an empty set."""


def overlap(ours_QN: Floats, theirs_QM: Floats, resamples: int = RESAMPLES) -> Overlap:
    """Return containment both ways and the Jaccard index of the solved sets of two models.

    Outcomes are 1, 0 or NaN for ungraded. The null hypothesis permutes the solve rates of one model
    over the questions. Given the rates of all questions, two models are independent by
    construction, so this measures the overlap of their difficulties. Raises ValueError if no
    question has a graded sample of both. Deterministic (seed 0).
    """
    if len(ours_QN) != len(theirs_QM):
        raise ValueError("the models answered different numbers of questions")
    ours_Q, theirs_Q = (question_means(each[None])[0] for each in (ours_QN, theirs_QM))
    graded_Q = ~(np.isnan(ours_Q) | np.isnan(theirs_Q))
    Q = int(graded_Q.sum())
    if Q == 0:
        raise ValueError("no question in common")
    ours_Q, theirs_Q = ours_Q[graded_Q], theirs_Q[graded_Q]
    rng = np.random.default_rng(0)
    draws_BQ = rng.multinomial(Q, np.full(Q, 1 / Q), size=resamples)
    moved_BQ = rng.permuted(np.broadcast_to(theirs_Q, (resamples, Q)), axis=1)
    sums = float(ours_Q.sum()), float(theirs_Q.sum())
    both = float(ours_Q @ theirs_Q)
    found = _measures(*sums, both)
    drawn = _measures(draws_BQ @ ours_Q, draws_BQ @ theirs_Q, draws_BQ @ (ours_Q * theirs_Q))
    chance = _measures(*sums, moved_BQ @ ours_Q)
    ceilings = [_ceiling(each[graded_Q]) for each in (ours_QN, theirs_QM)]
    measures = {
        name: _measure(
            float(found[name]), drawn[name], chance[name], [c.get(name) for c in ceilings]
        )
        for name in MEASURES
        if not np.isnan(found[name])
    }
    return Overlap(Q, *sums, both, measures)


def _measures(
    ours: Floats | float, theirs: Floats | float, both: Floats | float
) -> dict[str, Floats]:
    """Return `MEASURES` from the sizes of two sets and their intersection; NaN if one is empty."""
    wholes = (ours, theirs, np.asarray(ours) + theirs - both)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            name: np.asarray(both) / whole for name, whole in zip(MEASURES, wholes, strict=True)
        }


def _measure(
    value: float, drawn_B: Floats, chance_B: Floats, ceilings: list[float | None]
) -> Measure:
    """Summarise a measure; resamples in which it is undefined do not count."""
    low, high = np.quantile(drawn_B[~np.isnan(drawn_B)], TAILS)
    chance_low, chance_high = np.quantile(chance_B, TAILS)
    as_large = int((chance_B >= value - 1e-12).sum())
    return Measure(
        value=value,
        low=float(min(low, value)),
        high=float(max(high, value)),
        chance=float(chance_B.mean()),
        chance_low=float(chance_low),
        chance_high=float(chance_high),
        p=(1 + as_large) / (1 + len(chance_B)),
        ceiling_ours=ceilings[0],
        ceiling_theirs=ceilings[1],
    )


def _ceiling(correct_QN: Floats) -> dict[str, float]:
    """Return `MEASURES` between two different samples of one model, on questions that have two.

    If c of n samples are correct, both are correct in c (c - 1) / n (n - 1) of the pairs; the
    square of the rate would pair samples with themselves.
    """
    graded_Q = (~np.isnan(correct_QN)).sum(axis=1)
    n, c = graded_Q[graded_Q > 1], np.nansum(correct_QN, axis=1)[graded_Q > 1]
    size, both = float((c / n).sum()), float((c * (c - 1) / (n * (n - 1))).sum())
    found = _measures(size, size, both)
    return {name: float(value) for name, value in found.items() if not np.isnan(value)}
