"""Means over seeds and questions, and paired differences, with 95% intervals.

Shapes: S seeds, Q questions. Every seed answers the same questions: the two are crossed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from rlt_core.evaluation.intervals import CONFIDENCE, Estimate, clustered_mean

Floats = NDArray[np.float64]


def crossed_mean(values_SQ: Floats) -> Estimate:
    """Mean with a t interval that holds for other seeds and other questions.

    Two-way random effects without replication: Var(mean) = (MS_q + MS_s - MS_qs) / SQ, never less
    than MS_q / SQ (questions alone), with Satterthwaite's degrees of freedom (Biometrics Bulletin
    2, 1946). With one seed: clustered by question, for that seed. A single question has no
    interval: it is infinite.
    """
    S, Q = values_SQ.shape
    mean = float(values_SQ.mean())
    if Q == 1:
        return Estimate(mean, -np.inf, np.inf, 1)
    question_Q, seed_S = values_SQ.mean(axis=0), values_SQ.mean(axis=1)
    squares = [S * float(question_Q.var(ddof=1))]
    degrees = [Q - 1]
    if S > 1:
        rest_SQ = values_SQ - question_Q[None, :] - seed_S[:, None] + mean
        squares.append(Q * float(seed_S.var(ddof=1)))
        squares.append(-float((rest_SQ**2).sum()) / ((S - 1) * (Q - 1)))
        degrees += [S - 1, (S - 1) * (Q - 1)]
        if sum(squares) <= squares[0]:
            squares, degrees = squares[:1], degrees[:1]
    total = sum(squares)
    if total == 0:
        return Estimate(mean, mean, mean, Q)
    freedom = total**2 / sum(ms**2 / df for ms, df in zip(squares, degrees, strict=True))
    half = float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * np.sqrt(total / (S * Q))
    return Estimate(mean, mean - half, mean + half, Q)


def fraction(values_SQ: Floats, completions: int) -> Estimate:
    """Mean of fractions: the wider of `crossed_mean` and Wilson's interval, which has a width even
    where all questions agree, inside [0, 1]."""
    crossed = crossed_mean(values_SQ)
    wilson = clustered_mean(values_SQ.mean(axis=0).tolist(), completions)
    assert wilson
    return Estimate(
        crossed.value,
        max(0.0, min(crossed.low, wilson.low)),
        min(1.0, max(crossed.high, wilson.high)),
        crossed.questions,
    )


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
