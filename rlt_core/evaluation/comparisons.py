"""Models against each other on the same questions: differences, tests, power, ratios.

Shapes: S, T training seeds of two models, Q questions. Values are shares of correct samples a
question (`crossed.question_means`), NaN where none was graded: a question counts where every seed
of every model in the comparison was graded on it. Everything is deterministic: 0 is the seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import ndtr, stdtrit

from rlt_core.evaluation.crossed import Floats, covariance, crossed_means, shared_questions
from rlt_core.evaluation.intervals import CONFIDENCE, Estimate

RESAMPLES = 9999
POWER = 0.8
TAIL = 0.5 + CONFIDENCE / 2
BATCH = 500
"""Resamples held in memory at once."""


# ---------------------------------------------------------------- differences
@dataclass(frozen=True)
class Difference:
    """ours - theirs, as fractions."""

    checkpoint: Estimate
    """The seeds as they are: cluster bootstrap over questions."""
    checkpoint_p: float
    """Paired permutation test of the questions, two-sided."""
    method: Estimate | None
    """Training seeds random; None where a model that we trained has a single seed."""
    method_p: float | None
    detectable: float | None
    """`detectable_difference` of these checkpoints."""


def difference(
    ours_SQ: Floats,
    theirs_TQ: Floats,
    paired_seeds: bool = False,
    theirs_trained: bool = True,
    resamples: int = RESAMPLES,
) -> Difference:
    """Paired difference of two models on the same questions.

    `paired_seeds`: seed s of both shares something (data order, cold start), so that their
    difference is what varies. `theirs_trained` False: the untouched base or a model from
    elsewhere, which has no training seeds: one evaluation of it is all there is. Raises ValueError
    if no question is shared or if seeds are to be paired and their numbers differ.
    """
    if paired_seeds and len(ours_SQ) != len(theirs_TQ):
        raise ValueError(f"{len(ours_SQ)} seeds cannot be paired with {len(theirs_TQ)}")
    ours, theirs = shared_questions(ours_SQ, theirs_TQ)
    gain_Q = ours.mean(axis=0) - theirs.mean(axis=0)
    method = None
    if len(ours) > 1 and (len(theirs) > 1 or not theirs_trained):
        if paired_seeds:
            method = crossed_means([ours - theirs]).contrast([1.0])
        else:
            method = crossed_means([ours, theirs]).contrast([1.0, -1.0])
    return Difference(
        checkpoint=cluster_bootstrap(gain_Q, resamples),
        checkpoint_p=permutation_p(gain_Q, resamples),
        method=method.interval() if method else None,
        method_p=method.p_value() if method else None,
        detectable=detectable_difference(gain_Q),
    )


def cluster_bootstrap(gain_Q: Floats, resamples: int = RESAMPLES) -> Estimate:
    """Mean difference with its 95% interval from resampling questions.

    Expanded percentiles: a bootstrap sample of Q questions varies by (Q - 1) / Q too little and its
    percentiles are a normal's, so the level asked for is Phi(-t sqrt(Q / (Q - 1))) on each side,
    t of Q - 1 degrees of freedom (Hesterberg 2015, arXiv 1411.5279). A single question
    has no interval: it is infinite. Questions that all differ alike have one without a width.
    """
    Q, value = len(gain_Q), float(gain_Q.mean())
    if Q == 1:
        return Estimate(value, -np.inf, np.inf, 1)
    if np.ptp(gain_Q) == 0:
        return Estimate(value, value, value, Q)
    rng = np.random.default_rng(0)
    draws_BQ = rng.multinomial(Q, np.full(Q, 1 / Q), size=resamples)
    tail = float(ndtr(-stdtrit(Q - 1, TAIL) * np.sqrt(Q / (Q - 1))))
    low, high = np.quantile(draws_BQ @ gain_Q / Q, [tail, 1 - tail])
    return Estimate(value, min(value, float(low)), max(value, float(high)), Q)


def permutation_p(gain_Q: Floats, resamples: int = RESAMPLES) -> float:
    """Two-sided p-value of no difference: under it the sign of a question's difference is a coin's.

    Exact (all signs) where the questions that differ allow no more than `resamples` patterns,
    else from random signs with the observed ones counted among them, so never 0 (Phipson & Smyth
    2010, Statistical Applications in Genetics and Molecular Biology 9). With one binary answer a
    question this is McNemar's exact test.
    """
    differing = gain_Q[gain_Q != 0]
    if len(differing) < 2:
        return 1.0  # scipy asks for two; either sign of one is as far from 0 as what was seen
    found = stats.permutation_test(
        (differing,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=BATCH,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def mcnemar_p(ours_Q: Floats, theirs_Q: Floats) -> float:
    """McNemar's exact two-sided p-value: of the questions that one model alone solved, either is
    as likely to have it (a binomial test; McNemar 1947, Psychometrika 12).

    Only for one binary answer a question and model: it counts answers as independent, which
    several answers to one question, by samples or by seeds, are not. Raises ValueError else.
    """
    ours, theirs = (values[0] for values in shared_questions(ours_Q[None], theirs_Q[None]))
    if not np.isin([ours, theirs], (0.0, 1.0)).all():
        raise ValueError("McNemar's test needs one answer a question, right or wrong")
    alone = int((ours > theirs).sum()), int((theirs > ours).sum())
    return float(stats.binomtest(alone[0], sum(alone)).pvalue) if sum(alone) else 1.0


def holm(p_values: Mapping[str, float], primary: str | None = None) -> dict[str, float]:
    """Holm's adjusted p-values of a family (Holm 1979, Scandinavian Journal of Statistics 6).

    The `primary` contrast, named before the data were seen, is tested on its own and kept as it
    is. Raises ValueError for a primary that is not in the family and a p-value outside [0, 1].
    """
    if primary is not None and primary not in p_values:
        raise ValueError(f"the primary contrast {primary} is not among the p-values")
    wrong = [name for name, p in p_values.items() if not 0 <= p <= 1]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: a p-value lies between 0 and 1")
    family = sorted((name for name in p_values if name != primary), key=lambda name: p_values[name])
    adjusted = {} if primary is None else {primary: p_values[primary]}
    largest = 0.0
    for rank, name in enumerate(family):
        largest = max(largest, min(1.0, (len(family) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def detectable_difference(gain_Q: Floats) -> float | None:
    """The true mean difference that a two-sided 5% test on so many questions would find in 80% of
    studies, at the observed spread of the questions' differences.

    (t_0.975 + t_0.8) sd / sqrt(Q), t of Q - 1 degrees of freedom (Bloom 1995, Evaluation Review 19,
    p. 547; for evaluations of language models: Miller 2024, arXiv 2411.00640). None for
    a single question and where all differ alike: their spread was not seen.
    """
    Q = len(gain_Q)
    if Q < 2 or np.ptp(gain_Q) == 0:
        return None
    factor = float(stdtrit(Q - 1, TAIL) + stdtrit(Q - 1, POWER))
    return factor * float(gain_Q.std(ddof=1)) / float(np.sqrt(Q))


# ---------------------------------------------------------------- ratios
@dataclass(frozen=True)
class Ratio:
    """(ours - base) / (theirs - base): the share of a gain that is recovered."""

    value: float | None
    """None where theirs gains nothing at all."""
    intervals: tuple[tuple[float, float], ...]
    """The 95% set: one interval; two rays, from -inf and to inf, where the gain in the denominator
    may be 0; (-inf, inf) where nothing can be said."""
    denominator: Estimate
    seeds_random: bool
    """Whether it holds for the methods; else for these checkpoints."""

    @property
    def bounded(self) -> bool:
        return all(np.isfinite(end) for interval in self.intervals for end in interval)


def gain_ratio(ours_SQ: Floats, theirs_TQ: Floats, base_RQ: Floats) -> Ratio:
    """Ratio of two gains over one base, all on the same questions.

    Numerator and denominator vary together: they share the questions and the base. The set holds
    each ratio r at which (ours - base) - r (theirs - base) does not differ from 0 (Fieller 1954,
    J. Royal Statistical Society B 16) by every test of that contrast; t has the fewer degrees of
    freedom of the two gains. Seeds are random where both trained models have several, else as they
    are. Raises ValueError if no question is shared.
    """
    models = shared_questions(ours_SQ, theirs_TQ, base_RQ)
    seeds_random = len(models[0]) > 1 and len(models[1]) > 1
    if not seeds_random:
        models = [values.mean(axis=0, keepdims=True) for values in models]
    means = crossed_means(models)
    top_K, bottom_K = (1.0, 0.0, -1.0), (0.0, 1.0, -1.0)
    top, bottom = means.contrast(top_K), means.contrast(bottom_K)
    value = top.value / bottom.value if bottom.value else None
    everything = ((-np.inf, np.inf),)
    if means.questions == 1 or value is None:
        return Ratio(value, everything, bottom.interval(), seeds_random)
    intervals: list[tuple[float, float]] = []
    for parts in means.tests((1.0, 1.0, 1.0)):
        t = float(stdtrit(min(means.degrees(parts, each) for each in (top_K, bottom_K)), TAIL))
        # The set: a r^2 - 2 b r + c <= 0.
        a = bottom.value**2 - t * t * max(0.0, covariance(parts, bottom_K, bottom_K))
        b = top.value * bottom.value - t * t * covariance(parts, top_K, bottom_K)
        c = top.value**2 - t * t * max(0.0, covariance(parts, top_K, top_K))
        intervals += _solutions(a, b, c)
    return Ratio(value, _union(intervals), bottom.interval(), seeds_random)


def _solutions(a: float, b: float, c: float) -> list[tuple[float, float]]:
    """Where a r^2 - 2 b r + c <= 0; everywhere if a is 0."""
    root2 = b * b - a * c
    if a == 0 or (a < 0 and root2 <= 0):
        return [(-np.inf, np.inf)]
    root = np.sqrt(max(0.0, root2))
    low, high = sorted((float((b - root) / a), float((b + root) / a)))
    return [(low, high)] if a > 0 else [(-np.inf, low), (high, np.inf)]


def _union(intervals: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The same set as intervals that do not meet."""
    found: list[tuple[float, float]] = []
    for low, high in sorted(intervals):
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return tuple(found)
