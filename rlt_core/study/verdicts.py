"""From tables to verdicts: `holds`, `refuted` or `undecided`.

Every claim is about a method, so its intervals and tests let training seeds vary as well as
questions: two-way random effects (`rlt_core.evaluation.crossed`), seed s of both models paired. A
model without training seeds (the base, an imported one) is taken as it is. P-values are two-sided,
intervals are 95% ones.

- *difference*: H0: ours - theirs = margin. Against several, ours must beat every one (an
  intersection-union test: Berger, Technometrics 24, 1982): with all on the right side p is the
  largest, and the contrast that has it is shown; else p is the smallest of those on the wrong side
  times their number among all compared (Bonferroni), which one of them alone may refute.
- *ratio*: H0: (ours - base) - threshold (theirs - base) = 0, as in Fieller's set
  (`comparisons.gain_ratio`), which is shown. A ratio of gains says something only if there is a
  gain: p is the larger of that test's and of theirs - base = 0, and 1 where theirs gains nothing.
- *correlation*: score against rank, over the mean scores of the students of each rank. H0: the
  least-squares slope is 0, which is when Pearson's r is; seeds and questions vary. The larger p of
  that test and of r = 0 by the bootstrap interval that is shown (`ranking.rank_statistics`), which
  alone would be too small: it resamples scores that hold their chance already.
- *equivalence*, the negative control: two one-sided tests (TOST: Schuirmann, J. Pharmacokinetics
  and Biopharmaceutics 15, 1987) of H0: |ours - theirs| >= margin; p is the larger. Its p-value
  against no difference is shown with the contrast and decides nothing: among many controls some
  fall below any level. Beside it, where the claim names a set, the F test of rank x seed over all
  ranks of the set (`ranking.rank_seed_test`), which decides nothing either. It stands outside the
  family and is not adjusted.

Holm's adjusted p-values over the claims but the primary one and the controls. With p < level after
adjustment, a claim `holds` if its estimate is on the right side and is `refuted` if on the wrong
one; else it is `undecided`. A control `holds` if its p < level. It is `refuted` if the difference
is larger than the margin (two-sided p < level against the nearer end of the margin); else it is
`undecided`.

`detectable` is the true distance from H0 that would be found in 80% of studies with the spread seen
here, at the level, unadjusted (Bloom, Evaluation Review 19, 1995).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtr

from rlt_core.config import Frozen
from rlt_core.errors import UserError
from rlt_core.evaluation.comparisons import POWER, gain_ratio, holm
from rlt_core.evaluation.crossed import Contrast, crossed_means, shared_questions
from rlt_core.ranking import LARGEST_Z, Z_95, rank_seed_test, rank_statistics
from rlt_core.study.claims import (
    Claim,
    CorrelationClaim,
    DifferenceClaim,
    EquivalenceClaim,
    RatioClaim,
    Study,
)
from rlt_core.study.evidence import Evidence, Model

RESAMPLES = 2000
"""Of seeds and questions, for the interval of a correlation."""
Decision = Literal["holds", "refuted", "undecided"]
Intervals = tuple[tuple[float | None, float | None], ...]


class Line(Frozen):
    """One contrast that a verdict rests on; fractions of 1."""

    what: str
    estimate: float
    low: float | None
    """None: unbounded."""
    high: float | None
    p: float
    seeds_p: float | None = None
    """p-value of the t test over the seeds' means alone; None where it was not called for."""


class Point(Frozen):
    """The students of a rank."""

    rank: int
    score: float
    mean_reward: float | None
    """Of the traces of this rank by reward, where the set is ranked by it."""


class RankTest(Frozen):
    """F test of rank x seed over the students of all ranks of a set."""

    set: str
    f: float | None
    """None: infinite, as the seeds agree exactly."""
    degrees: tuple[int, int]
    p: float


class Verdict(Frozen):
    """The verdict on a claim."""

    claim: str
    kind: str
    statement: str
    primary: bool
    verdict: Decision
    estimate: float | None
    """A difference as a fraction of 1, a ratio, or Pearson's r; None where it is not defined."""
    intervals: Intervals
    """The 95% set: one interval, or two rays for a ratio; None: unbounded."""
    p: float
    adjusted_p: float | None
    """None: a negative control, which stands outside the family."""
    detectable: float | None
    """In the unit of the estimate; None where it is not known."""
    questions: int
    contrasts: tuple[Line, ...] = ()
    points: tuple[Point, ...] = ()
    rank_test: RankTest | None = None
    """Beside a negative control."""
    pilot: bool = False
    """Whether the study has fewer seeds than a claim takes."""


@dataclass(frozen=True)
class _Finding:
    """A verdict before the family is known."""

    estimate: float | None
    intervals: Intervals
    p: float
    right: bool
    """Whether the estimate is on the claim's side."""
    detectable: float | None
    questions: int
    contrasts: tuple[Line, ...] = ()
    points: tuple[Point, ...] = ()
    rank_test: RankTest | None = None
    outside: float = 1.0
    """p-value of a control's difference being no larger than the margin."""


def judge(study: Study, evidence: Evidence) -> list[Verdict]:
    """The verdict on each claim. Raises UserError where the tables do not allow one."""
    findings = {claim.name: _finding(claim, evidence, study.level) for claim in study.claims}
    tested = [claim for claim in study.claims if not isinstance(claim, EquivalenceClaim)]
    primary = next((claim.name for claim in tested if claim.primary), None)
    adjusted = holm({claim.name: findings[claim.name].p for claim in tested}, primary)
    return [
        _verdict(claim, findings[claim.name], adjusted.get(claim.name), study)
        for claim in study.claims
    ]


def _finding(claim: Claim, evidence: Evidence, level: float) -> _Finding:
    try:
        match claim:
            case CorrelationClaim():
                return _correlation(evidence.ranks(claim), evidence.rewards(claim), claim.set)
            case RatioClaim():
                return _ratio(claim, evidence.models(claim), level)
            case EquivalenceClaim():
                ranks = evidence.ranks(claim)
                return _equivalence(claim, evidence.models(claim), ranks, level)
            case DifferenceClaim():
                return _difference(claim, evidence.models(claim), level)
    except ValueError as error:
        raise UserError(f"claim {claim.name!r}: {error}") from None


def _verdict(claim: Claim, found: _Finding, adjusted: float | None, study: Study) -> Verdict:
    decision: Decision = "undecided"
    if isinstance(claim, EquivalenceClaim):
        if found.p < study.level:
            decision = "holds"
        elif found.outside < study.level:
            decision = "refuted"
    elif adjusted is not None and adjusted < study.level:
        decision = "holds" if found.right else "refuted"
    return Verdict(
        claim=claim.name,
        kind=claim.kind,
        statement=claim.statement,
        primary=claim.primary,
        verdict=decision,
        estimate=found.estimate,
        intervals=found.intervals,
        p=found.p,
        adjusted_p=adjusted,
        detectable=found.detectable,
        questions=found.questions,
        contrasts=found.contrasts,
        points=found.points,
        rank_test=found.rank_test,
        pilot=study.pilot,
    )


# ---------------------------------------------------------------- differences
def paired_contrast(ours: Model, theirs: Model) -> Contrast:
    """ours - theirs where training seeds vary; those that both have are paired. Raises ValueError
    if no question is shared."""
    one_SQ, other_SQ = shared_questions(ours.values_SQ, theirs.values_SQ)
    if ours.trained and ours.seeds == theirs.seeds:
        return crossed_means([one_SQ - other_SQ]).contrast([1.0])
    return crossed_means([one_SQ, other_SQ]).contrast([1.0, -1.0])


def detectable(contrast: Contrast, level: float) -> float | None:
    """Distance from H0 that a two-sided test finds in 80% of studies; None where the spread was
    not seen."""
    if contrast.questions == 1:
        return None
    return contrast.half_width(1 - level / 2, POWER) or None


def _difference(claim: DifferenceClaim, models: dict[str, Model], level: float) -> _Finding:
    baselines, margin = claim.theirs, claim.margin
    ours = models[claim.ours]
    contrasts = {name: paired_contrast(ours, models[name]) for name in baselines}
    p = {name: one.p_value(margin) for name, one in contrasts.items()}
    wrong = [name for name, one in contrasts.items() if one.value <= margin]
    if wrong:
        decisive = min(wrong, key=lambda name: p[name])
        value = min(1.0, p[decisive] * len(baselines))
    else:
        decisive = max(baselines, key=lambda name: p[name])
        value = p[decisive]
    shown = contrasts[decisive]
    return _Finding(
        estimate=shown.value,
        intervals=(_ends(shown),),
        p=value,
        right=not wrong,
        detectable=detectable(shown, level),
        questions=shown.questions,
        contrasts=tuple(
            _line(f"{claim.ours} - {name}", one, margin) for name, one in contrasts.items()
        ),
    )


def _equivalence(
    claim: EquivalenceClaim, models: dict[str, Model], ranks: dict[int, Model], level: float
) -> _Finding:
    contrast = paired_contrast(models[claim.ours], models[claim.theirs])
    nearer = float(np.copysign(claim.margin, contrast.value))
    p = contrast.p_value(nearer)  # the larger of the one-sided ones is that at the nearer end
    inside = abs(contrast.value) < claim.margin
    return _Finding(
        estimate=contrast.value,
        intervals=(_ends(contrast),),
        p=p / 2 if inside else 1 - p / 2,
        right=inside,
        outside=1.0 if inside else p,
        detectable=detectable(contrast, level),
        questions=contrast.questions,
        contrasts=(_line(f"{claim.ours} - {claim.theirs}", contrast),),
        rank_test=_rank_test(claim, ranks),
    )


def _rank_test(claim: EquivalenceClaim, ranks: dict[int, Model]) -> RankTest | None:
    if claim.set is None:
        return None
    shared = np.stack(shared_questions(*(model.values_SQ for model in ranks.values())), axis=1)
    found = rank_seed_test(shared)
    if found is None:
        return None
    return RankTest(set=claim.set, f=_finite(found.f), degrees=found.degrees, p=found.p)


def _ends(contrast: Contrast) -> tuple[float | None, float | None]:
    found = contrast.interval()
    return _finite(found.low), _finite(found.high)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _line(what: str, contrast: Contrast, null: float = 0.0) -> Line:
    low, high = _ends(contrast)
    p, *alone = contrast.p_values(null)
    return Line(
        what=what, estimate=contrast.value, low=low, high=high, p=max([p, *alone]),
        seeds_p=alone[0] if alone else None,
    )  # fmt: skip


# ---------------------------------------------------------------- ratios
def _ratio(claim: RatioClaim, models: dict[str, Model], level: float) -> _Finding:
    """`gain_ratio` and its test of one ratio."""
    values = [models[name].values_SQ for name in (claim.ours, claim.theirs, claim.base)]
    ratio = gain_ratio(*values)
    means = crossed_means(shared_questions(*values))
    gains_K = [1, 0, -1], [0, 1, -1]
    ours, theirs = (means.contrast(each) for each in gains_K)
    excess = means.contrast([1, -claim.threshold, claim.threshold - 1], fewest=gains_K)
    gains = theirs.value > 0
    detected = detectable(excess, level)
    return _Finding(
        estimate=ratio.value,
        intervals=tuple((_finite(low), _finite(high)) for low, high in ratio.intervals),
        p=max(excess.p_value(), theirs.p_value()) if gains else 1.0,
        right=excess.value > 0,
        detectable=detected / theirs.value if detected is not None and gains else None,
        questions=means.questions,
        contrasts=(
            _line(f"{claim.ours} - {claim.base}", ours),
            _line(f"{claim.theirs} - {claim.base}", theirs),
        ),
    )


# ---------------------------------------------------------------- correlations
def _correlation(models: dict[int, Model], rewards: dict[int, float], of_set: str) -> _Finding:
    ranks_R = np.array(list(models), dtype=np.float64)
    marks_SRQ = np.stack([model.values_SQ for model in models.values()], axis=1)
    found = rank_statistics(ranks_R, marks_SRQ, RESAMPLES)
    slope = rank_slope(ranks_R, list(models.values()))
    points = tuple(
        Point(
            rank=rank,
            score=float(np.nanmean(model.values_SQ)),
            mean_reward=rewards.get(rank) if of_set == "reward" else None,
        )
        for rank, model in models.items()
    )
    line = _line("score a rank up", slope)
    if "pearson" not in found:
        return _Finding(None, ((None, None),), 1.0, False, None, slope.questions, (line,), points)
    value, low, high = (found[f"pearson{end}"] for end in ("", "_low", "_high"))
    return _Finding(
        estimate=value,
        intervals=((low, high),),
        p=max(slope.p_value(), correlation_p(value, low, high)),
        right=value > 0,
        detectable=None,
        questions=slope.questions,
        contrasts=(line,),
        points=points,
    )


def rank_slope(ranks_R: np.ndarray, models: Sequence[Model]) -> Contrast:
    """Least-squares slope of score over goodness of rank, as a contrast of means; the students of
    one seed belong together. Its sign is that of Pearson's r."""
    centred_R = ranks_R.mean() - ranks_R
    weights_R = centred_R / (centred_R @ centred_R)
    shared = np.stack(shared_questions(*(model.values_SQ for model in models)), axis=1)
    return crossed_means([np.einsum("r,srq->sq", weights_R, shared)]).contrast([1.0])


def correlation_p(value: float, low: float, high: float) -> float:
    """Two-sided p-value of r = 0 whose 95% interval, normal on Fisher's z scale, is [low, high]."""
    largest = float(np.tanh(LARGEST_Z))
    z, *ends = np.arctanh(np.clip([value, low, high], -largest, largest))
    half = max(z - ends[0], ends[1] - z)
    if half == 0:
        return 0.0 if value else 1.0
    return float(2 * ndtr(-abs(z) * Z_95 / half))
