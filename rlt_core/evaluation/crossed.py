"""Means of models over training seeds and questions, and how far they would vary.

Shapes: K models, S training seeds (each model its own number), Q questions, N samples. Every seed
of every model answers the same questions: the two are crossed. Two intervals of one mean:

- *this checkpoint*: the seeds stand as they are, other questions and samples could have come;
- *this method*: another run would train with other seeds too.

The method's interval is a t interval from the two-way random effects model without replication. A
bootstrap over seeds and questions is too narrow for few seeds that differ: over 1000 simulated
studies of 3 seeds and 100 questions (level of seeds 0.5 +- 0.08) its 95% percentiles held the truth
in 84%, this interval in 92%; with 500 questions (+- 0.05) 80% and 93%; with 5 seeds 89% and 94%.
Where seeds hardly differ the bootstrap counts the noise of samples thrice: Owen, "The pigeonhole
bootstrap", Annals of Applied Statistics 1 (2007), arXiv 0712.1111.

The estimate of the seeds' variance component is often not positive although they differ. The
interval from the questions alone would then claim their many degrees of freedom: with 5 seeds that
differ by 3 points its test found a difference where there is none in 1.4% of studies at the level
0.005. Where it is not positive, a t test over the means of the seeds (S - 1 degrees) is therefore
computed as well, and the larger p-value and the wider interval count
(`infra/benchmarks/false_positives.py` measures both).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from rlt_core.evaluation.intervals import CONFIDENCE, Estimate, clustered_mean

Floats = NDArray[np.float64]


# ---------------------------------------------------------------- outcomes
def question_means(correct_SQN: Floats) -> Floats:
    """(S, Q) share of correct samples; NaN where none of a question's samples was graded."""
    graded_SQ = (~np.isnan(correct_SQN)).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        means_SQ: Floats = np.nansum(correct_SQN, axis=-1) / graded_SQ
    return means_SQ


def shared_questions(*models: Floats) -> list[Floats]:
    """The (S, Q) values of each model on the questions that every seed of every model has.

    Raises ValueError if there is none, or if the models were not asked the same questions.
    """
    if len({values_SQ.shape[1] for values_SQ in models}) != 1:
        raise ValueError("the models answered different numbers of questions")
    graded_Q = np.all([~np.isnan(values_SQ).any(axis=0) for values_SQ in models], axis=0)
    if not graded_Q.any():
        raise ValueError("no question in common")
    return [values_SQ[:, graded_Q] for values_SQ in models]


# ---------------------------------------------------------------- the random effects
Parts = tuple[tuple[Floats, int], ...]
"""Parts of a covariance of K means: each a (K, K) matrix with its degrees of freedom; a part may be
negative (a correction)."""


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of means and its t tests, of which the most conservative counts."""

    value: float
    tests: tuple[tuple[float, float], ...]
    """Variance and degrees of freedom: of the two-way layout, and of the seeds' means alone where
    a variance component of the seeds is not positive."""
    questions: int

    def half_width(self, *probabilities: float) -> float:
        """The largest of the tests' standard errors times the sum of these t quantiles."""
        return max(
            float(sum(stdtrit(degrees, each) for each in probabilities) * np.sqrt(variance))
            if variance > 0
            else 0.0
            for variance, degrees in self.tests
        )

    def interval(self) -> Estimate:
        """The t interval; infinite where a single question cannot say how questions vary."""
        if self.questions == 1:
            return Estimate(self.value, -np.inf, np.inf, 1)
        half = self.half_width(0.5 + CONFIDENCE / 2)
        return Estimate(self.value, self.value - half, self.value + half, self.questions)

    def p_values(self, null: float = 0.0) -> list[float]:
        """Two-sided, of the contrast being `null`, by each test; 1 for a single question.
        Differences that are all alike and not `null` leave no doubt: 0."""
        distance = abs(self.value - null)
        if self.questions == 1 or distance == 0:
            return [1.0]
        return [
            float(2 * stdtr(degrees, -distance / np.sqrt(variance))) if variance > 0 else 0.0
            for variance, degrees in self.tests
        ]

    def p_value(self, null: float = 0.0) -> float:
        """The largest of `p_values`."""
        return max(self.p_values(null))


@dataclass(frozen=True)
class Means:
    """Means of K models on the same questions, and the parts of their covariance."""

    value_K: Floats
    two_way: Parts
    seeds: Parts
    """Of the seeds' means alone: the questions are taken as they are."""
    unclear_K: NDArray[np.bool_]
    """Whether the variance component of a model's seeds is not positive."""
    questions: int

    def tests(self, weights_K: Sequence[float]) -> list[Parts]:
        """The covariances by which a contrast is tested."""
        unclear = bool(self.unclear_K[np.asarray(weights_K) != 0].any())
        return [self.two_way, self.seeds] if unclear else [self.two_way]

    def contrast(
        self, weights_K: Sequence[float], fewest: Sequence[Sequence[float]] = ()
    ) -> Contrast:
        """Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946), or the fewest of the
        contrasts `fewest`."""
        tests = [
            (
                max(0.0, covariance(parts, weights_K, weights_K)),
                min(self.degrees(parts, each) for each in fewest or [weights_K]),
            )
            for parts in self.tests(weights_K)
        ]
        value = float(np.asarray(weights_K) @ self.value_K)
        return Contrast(value, tuple(tests), self.questions)

    def degrees(self, parts: Parts, weights_K: Sequence[float]) -> float:
        """Of the variance of a contrast."""
        total = max(0.0, covariance(parts, weights_K, weights_K))
        spread = sum(
            covariance(((part, degrees),), weights_K, weights_K) ** 2 / degrees
            for part, degrees in parts
        )
        return total**2 / spread if total > 0 else float(self.questions - 1)


def covariance(parts: Parts, one_K: Sequence[float], other_K: Sequence[float]) -> float:
    """Of two contrasts."""
    return float(sum(np.asarray(one_K) @ part @ np.asarray(other_K) for part, _ in parts))


def crossed_means(models: Sequence[Floats]) -> Means:
    """`Means` of (S, Q) values without NaN; the questions vary together, the seeds of each model
    on their own. A model with one seed is taken as it is: a checkpoint."""
    Q, K = models[0].shape[1], len(models)
    value_K = np.array([values_SQ.mean() for values_SQ in models])
    if Q == 1:
        return Means(value_K, (), (), np.zeros(K, dtype=bool), 1)
    question_KQ = np.array([values_SQ.mean(axis=0) for values_SQ in models])
    of_questions = (np.atleast_2d(np.cov(question_KQ)) / Q, Q - 1)
    return with_seeds(value_K, (of_questions,), [[values_SQ] for values_SQ in models], Q)


def with_seeds(
    value_K: Floats, of_questions: Parts, models: Sequence[Sequence[Floats]], questions: int
) -> Means:
    """Add to the covariance over questions that over training seeds, from `models[k][t]`: (S, Q)
    values of model k on task t, which all count the same.

    The variance component of the seeds is (MS_s - MS_qs) / (SQ), MS_qs being the residual of the
    two-way layout; the two-way part leaves it out where it is not positive.
    """
    two_way, seeds = list(of_questions), []
    unclear_K = np.zeros(len(models), dtype=bool)
    for k, tasks in enumerate(models):
        S = len(tasks[0])
        if S == 1:
            continue
        only_KK = np.diag(np.arange(len(models)) == k).astype(np.float64)
        among = float(np.mean([each.mean(axis=1) for each in tasks], axis=0).var(ddof=1)) / S
        rests = [_residual(values_SQ, len(tasks)) for values_SQ in tasks]
        seeds.append((among * only_KK, S - 1))
        # Equal ones, common with few answers, differ by rounding.
        unclear_K[k] = among <= sum(rest for rest, _ in rests) * (1 + 1e-9)
        if not unclear_K[k]:
            two_way.append(seeds[-1])
            two_way += [(-rest * only_KK, degrees) for rest, degrees in rests]
    return Means(value_K, tuple(two_way), tuple(seeds), unclear_K, questions)


def _residual(values_SQ: Floats, tasks: int) -> tuple[float, int]:
    """What chance in the answers makes of the variance of the seeds' means over so many tasks, and
    its degrees of freedom."""
    S, Q = values_SQ.shape
    rows, columns = values_SQ.mean(axis=1, keepdims=True), values_SQ.mean(axis=0)
    rest_SQ = values_SQ - columns - rows + values_SQ.mean()
    degrees = (S - 1) * (Q - 1)
    return float((rest_SQ**2).sum()) / (degrees * S * Q) / tasks**2, degrees


# ---------------------------------------------------------------- scores
def crossed_mean(values_SQ: Floats) -> Estimate:
    """Mean with a t interval that holds for other seeds and other questions: two-way random
    effects, never narrower than the questions alone make it. With one seed: clustered by
    question, for that seed. A single question has no interval: it is infinite."""
    return crossed_means([values_SQ]).contrast([1.0]).interval()


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


def checkpoint_score(correct_QN: Floats) -> Estimate | None:
    """Score of *this checkpoint*: clustered by question, over the questions with a graded sample
    (the interval of `clustered_mean`); None where nothing was graded."""
    value_Q = question_means(correct_QN[None])[0]
    return clustered_mean(value_Q[~np.isnan(value_Q)].tolist(), int((~np.isnan(correct_QN)).sum()))


def method_score(correct_SQN: Floats) -> Estimate | None:
    """Score of *this method*: training seeds are random too, over the questions that every seed
    was graded on. None where it is not defined: one seed does not show how seeds vary."""
    if len(correct_SQN) < 2:
        return None
    values_SQ = question_means(correct_SQN)
    graded_Q = ~np.isnan(values_SQ).any(axis=0)
    if not graded_Q.any():
        return None
    return fraction(values_SQ[:, graded_Q], int((~np.isnan(correct_SQN[:, graded_Q])).sum()))
