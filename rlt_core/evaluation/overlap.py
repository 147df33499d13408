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


@dataclass(frozen=True)
class Measure:
    """A fraction of a solved set, with its 95% interval from resampling questions."""

    value: float
    low: float
    high: float
    chance: float
    """What sets of these sizes on unrelated questions have."""


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

    Outcomes are 1, 0 or NaN for ungraded. Raises ValueError if no question has a graded sample of
    both. Deterministic (seed 0).
    """
    if len(ours_QN) != len(theirs_QM):
        raise ValueError("the models answered different numbers of questions")
    ours_Q, theirs_Q = (question_means(each[None])[0] for each in (ours_QN, theirs_QM))
    graded_Q = ~(np.isnan(ours_Q) | np.isnan(theirs_Q))
    Q = int(graded_Q.sum())
    if Q == 0:
        raise ValueError("no question in common")
    ours_Q, theirs_Q = ours_Q[graded_Q], theirs_Q[graded_Q]
    # The whole set first, then its resamples.
    counts = np.random.default_rng(0).multinomial(Q, np.full(Q, 1 / Q), size=resamples)
    counts_BQ = np.vstack([np.ones(Q, int), counts])
    ours_B, theirs_B, both_B = (counts_BQ @ each for each in (ours_Q, theirs_Q, ours_Q * theirs_Q))
    wholes = dict(zip(MEASURES, (ours_B, theirs_B, ours_B + theirs_B - both_B), strict=True))
    unrelated = ours_B[0] * theirs_B[0] / Q
    chances = (ours_B[0], theirs_B[0], ours_B[0] + theirs_B[0] - unrelated)
    measures = {}
    for (name, whole_B), whole in zip(wholes.items(), chances, strict=True):
        if whole_B[0]:
            found_B = both_B[whole_B > 0] / whole_B[whole_B > 0]
            low, high = np.quantile(found_B, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
            measures[name] = Measure(*map(float, (found_B[0], low, high, unrelated / whole)))
    return Overlap(Q, float(ours_B[0]), float(theirs_B[0]), float(both_B[0]), measures)
