"""Statistics of a report: differences on the same questions, and means over several tasks.

Shapes: T tasks, K models, S training seeds, Q questions of a task. Every seed answers the same
questions: the two are crossed.

Every task counts the same, however many questions it has: mean = 1/T sum_t x_t. The questions of
two tasks have nothing in common, so their contributions are independent; a training seed is the
same on every task, so its contributions are not:

    variance = 1/T^2 sum_t v_t + among,   v_t the variance of task t over its questions,
    among    = the seeds' variance component of their means over the tasks, over S.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlt_core.evaluation.crossed import (
    Contrast,
    Floats,
    Means,
    crossed_mean,
    crossed_means,
    with_seeds,
)
from rlt_core.evaluation.intervals import Estimate


def matrix(by_seed: list[dict[str, float]]) -> Floats:
    """(S, Q) over the questions that every seed has, in the order of their names."""
    questions = sorted(set.intersection(*(set(values) for values in by_seed)))
    return np.array([[values[question] for question in questions] for values in by_seed])


def mean_over_seeds(by_seed: list[dict[str, float]]) -> Estimate:
    """Mean of the questions' values on those that every seed has, crossed with seeds.

    If the seeds have no question in common, each of them has questions of its own: then the mean
    and t interval of the seeds' means.
    """
    values_SQ = matrix(by_seed)
    if values_SQ.shape[1]:
        return crossed_mean(values_SQ)
    means_S = [sum(values.values()) / len(values) for values in by_seed]
    estimate = crossed_mean(np.array([means_S]))
    return replace(estimate, questions=sum(map(len, by_seed)))


def paired_difference(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> Estimate:
    """Mean of ours - theirs on the questions that both have, seed by seed.

    A side with one seed is compared with every seed of the other. Other unequal numbers of seeds
    are averaged first. Raises ValueError if they share no question.
    """
    common = sorted(set.intersection(*(set(values) for values in (*ours, *theirs))))
    if not common:
        raise ValueError("no question in common")
    ours_SQ, theirs_SQ = (
        matrix([{question: values[question] for question in common} for values in side])
        for side in (ours, theirs)
    )
    if seeds_of(ours, theirs) < max(len(ours), len(theirs)):
        ours_SQ, theirs_SQ = (each.mean(axis=0, keepdims=True) for each in (ours_SQ, theirs_SQ))
    return crossed_mean(ours_SQ - theirs_SQ)


def seeds_of(ours: Sequence[object], theirs: Sequence[object]) -> int:
    """Return for how many training seeds the interval of `paired_difference` holds."""
    averaged = len(ours) != len(theirs) and 1 not in (len(ours), len(theirs))
    return 1 if averaged else max(len(ours), len(theirs))


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
