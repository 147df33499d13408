"""Differences on the same questions, and values of several tasks as those of one.

Shapes: T tasks, S training seeds, Q questions of a task. Every seed answers the same questions: the
two are crossed.
"""

from collections.abc import Sequence

import numpy as np

from rlt_core.evaluation.crossed import Floats, crossed_mean, shared_questions
from rlt_core.evaluation.intervals import Estimate


def paired_difference(ours_SQ: Floats, theirs_SQ: Floats) -> Estimate:
    """Mean of ours - theirs on the questions that both have, seed by seed, with a t interval.

    A side with one seed is compared with every seed of the other. Other unequal numbers of seeds
    are averaged first. Raises ValueError if they share no question.
    """
    both = shared_questions(ours_SQ, theirs_SQ)
    if len(ours_SQ) != len(theirs_SQ) and 1 not in (len(ours_SQ), len(theirs_SQ)):
        both = [values_SQ.mean(axis=0, keepdims=True) for values_SQ in both]
    return crossed_mean(both[0] - both[1])


def joined(tasks: Sequence[Floats], centred: bool = False) -> Floats:
    """Return (S, sum of Q) values whose mean counts every task the same, however many questions it
    has: those of task t are multiplied by (sum of Q) / (T Q_t).

    `centred`: tasks differ in nothing but their questions' deviations from the task's mean, so that
    the variance of the mean is sum_t v_t / T^2, v_t the variance of task t over its questions, plus
    that of the seeds' means over the tasks.
    """
    total = sum(values_SQ.shape[1] for values_SQ in tasks)
    means = [values_SQ.mean() if centred else 0.0 for values_SQ in tasks]
    return np.concatenate(
        [
            np.mean(means) + (values_SQ - mean) * total / (len(tasks) * values_SQ.shape[1])
            for values_SQ, mean in zip(tasks, means, strict=True)
        ],
        axis=1,
    )


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of independent estimates from their intervals [l_t, u_t] alone:

        low = mean - 1/T sqrt(sum_t (x_t - l_t)^2),   high = mean + 1/T sqrt(sum_t (u_t - x_t)^2)

    (Zou & Donner 2008, Statistics in Medicine 27, p. 1693). Unlike a sum of variances it keeps the
    width of a task whose questions all agree.
    """
    T = len(estimates)
    value = sum(one.value for one in estimates) / T
    below = np.sqrt(sum((one.value - one.low) ** 2 for one in estimates)) / T
    above = np.sqrt(sum((one.high - one.value) ** 2 for one in estimates)) / T
    questions = sum(one.questions for one in estimates)
    return Estimate(value, float(value - below), float(value + above), questions)
