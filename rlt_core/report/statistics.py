"""Differences on the same questions, and means over several tasks.

Shapes: T tasks, K models, S training seeds, Q questions of a task. Every seed answers the same
questions: the two are crossed.

Every task counts the same, however many questions it has: mean = 1/T sum_t x_t. The questions of
two tasks have nothing in common, so their contributions are independent; a training seed is the
same on every task, so its contributions are not:

    variance = 1/T^2 sum_t v_t + among,   v_t the variance of task t over its questions,
    among    = the seeds' variance component of their means over the tasks, over S.
"""

from collections.abc import Sequence

import numpy as np

from rlt_core.evaluation.crossed import (
    Contrast,
    Floats,
    Means,
    crossed_mean,
    crossed_means,
    shared_questions,
    with_seeds,
)
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


def mean_contrast(tasks: Sequence[Sequence[Floats]], weights_K: Sequence[float]) -> Contrast:
    """Weighted sum of K models' means over tasks, from `tasks[t][k]`: (S, Q) values without NaN.

    A model with one seed is taken as it is. For one task it is the contrast of `crossed_means`.
    A task of a single question leaves no interval: it is infinite.
    """
    T, K = len(tasks), len(weights_K)
    value_K = np.mean([[values.mean() for values in models] for models in tasks], axis=0)
    fewest = min(models[0].shape[1] for models in tasks)
    if fewest == 1:
        return Means(value_K, (), (), np.zeros(K, dtype=bool), 1).contrast(weights_K)
    of_questions = tuple(
        (part_KK / T**2, degrees)
        for models in tasks
        for part_KK, degrees in crossed_means(
            [values.mean(axis=0, keepdims=True) for values in models]
        ).two_way
    )
    by_model = [[models[k] for models in tasks] for k in range(K)]
    return with_seeds(value_K, of_questions, by_model, fewest).contrast(weights_K)


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
