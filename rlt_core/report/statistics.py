"""The report's answers by question as arrays, and paired differences of them.

Shapes: S seeds, Q questions. Every seed answers the same questions: the two are crossed.
"""

from __future__ import annotations

import numpy as np

from rlt_core.evaluation.crossed import Floats, crossed_mean, fraction
from rlt_core.evaluation.intervals import Estimate

__all__ = ["crossed_mean", "fraction", "matrix", "paired_difference"]


def matrix(by_seed: list[dict[str, float]]) -> Floats:
    """(S, Q) over the questions that every seed has, in the order of their names."""
    questions = sorted(set.intersection(*(set(values) for values in by_seed)))
    return np.array([[values[question] for question in questions] for values in by_seed])


def paired_difference(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> Estimate:
    """Mean of ours - theirs on the questions that both have, seed by seed.

    A side with one seed is compared with every seed of the other. Other unequal numbers of seeds
    are averaged first. Raises ValueError if they share no question.
    """
    common = sorted(set.intersection(*(set(values) for values in (*ours, *theirs))))
    if not common:
        raise ValueError("no question in common")
    ours_SQ, theirs_SQ = (
        np.array([[values[question] for question in common] for values in side])
        for side in (ours, theirs)
    )
    if len(ours) != len(theirs) and 1 not in (len(ours), len(theirs)):
        ours_SQ, theirs_SQ = (each.mean(axis=0, keepdims=True) for each in (ours_SQ, theirs_SQ))
    return crossed_mean(ours_SQ - theirs_SQ)
