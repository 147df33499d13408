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

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator
from scipy.special import ndtr

from rlt_core.config import Frozen
from rlt_core.errors import UserError
from rlt_core.evaluation.comparisons import POWER, gain_ratio, holm
from rlt_core.evaluation.crossed import Contrast, Floats, crossed_means, shared_questions
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
"""Resamples of seeds and questions, for the interval of a correlation."""
Decision = Literal["holds", "refuted", "undecided"]
Bound = Annotated[
    float | None,
    AfterValidator(lambda value: value if value is not None and math.isfinite(value) else None),
]
"""None: unbounded."""
Intervals = tuple[tuple[Bound, Bound], ...]


class Line(Frozen):
    """One contrast that a verdict rests on; fractions of 1."""

    what: str
    estimate: float
    low: Bound
    high: Bound
    p: float
    seeds_p: float | None = None
    """p-value of the t test over the seeds' means alone; None where it was not called for."""


class Point(Frozen):
    """The students of a rank."""

    rank: int
    score: float
    mean_reward: float | None
    """Mean reward of this rank's traces, where the set is ranked by it."""


class RankTest(Frozen):
    """F test of rank x seed over the students of all ranks of a set."""

    set: str
    f: Bound
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
    """The 95% set: one interval, or two rays for a ratio."""
    p: float
    adjusted_p: float | None
    """None: a negative control, which is outside the family."""
    detectable: float | None
    """In the unit of the estimate; None where it is not known."""
    questions: int
    contrasts: tuple[Line, ...] = ()
    points: tuple[Point, ...] = ()
    rank_test: RankTest | None = None
    """Beside a negative control."""
    pilot: bool = False
    """Whether the study has fewer seeds than a claim takes."""


def judge(study: Study, evidence: Evidence) -> list[Verdict]:
    """The verdict on each claim. Raises UserError where the tables do not allow one."""
    found = {claim.name: _unadjusted(claim, evidence, study.level) for claim in study.claims}
    tested = [claim for claim in study.claims if claim.kind != "equivalence"]
    primary = next((claim.name for claim in tested if claim.primary), None)
    adjusted = holm({claim.name: found[claim.name].p for claim in tested}, primary)
    verdicts = []
    for name, verdict in found.items():
        p = adjusted.get(name)
        decided = verdict.verdict if p is None or p < study.level else "undecided"
        update = {"verdict": decided, "adjusted_p": p, "pilot": study.pilot}
        verdicts.append(verdict.model_copy(update=update))
    return verdicts


def _unadjusted(claim: Claim, evidence: Evidence, level: float) -> Verdict:
    """A control's verdict; for other claims the one that holds if its p-value, once adjusted for
    the family, is below the level."""
    try:
        models = evidence.models(claim)
        ranks = evidence.ranks(claim, models)
        match claim:
            case CorrelationClaim():
                return _correlation(claim, ranks, evidence.rewards(claim))
            case RatioClaim():
                return _ratio(claim, models, level)
            case EquivalenceClaim():
                return _equivalence(claim, models, ranks, level)
            case DifferenceClaim():
                return _difference(claim, models, level)
    except ValueError as error:
        raise UserError(f"claim {claim.name!r}: {error}") from None


def _verdict(claim: Claim, verdict: Decision, **found: Any) -> Verdict:
    return Verdict(
        claim=claim.name, kind=claim.kind, statement=claim.statement, primary=claim.primary,
        verdict=verdict, adjusted_p=None, **found,
    )  # fmt: skip


# ---------------------------------------------------------------- differences
def paired_contrast(ours: Model, theirs: Model) -> Contrast:
    """ours - theirs with random training seeds; seeds that both have are paired. Raises ValueError
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


def _ends(contrast: Contrast) -> tuple[float, float]:
    interval = contrast.interval()
    return interval.low, interval.high


def _line(what: str, contrast: Contrast, null: float = 0.0) -> Line:
    low, high = _ends(contrast)
    p, *alone = contrast.p_values(null)
    return Line(
        what=what, estimate=contrast.value, low=low, high=high, p=max([p, *alone]),
        seeds_p=alone[0] if alone else None,
    )  # fmt: skip


def _difference(claim: DifferenceClaim, models: Mapping[str, Model], level: float) -> Verdict:
    ours, margin = models[claim.ours], claim.margin
    contrasts = {name: paired_contrast(ours, models[name]) for name in claim.theirs}
    p = {name: one.p_value(margin) for name, one in contrasts.items()}
    if wrong := [name for name, one in contrasts.items() if one.value <= margin]:
        decisive = min(wrong, key=p.__getitem__)
        value = min(1.0, p[decisive] * len(p))
    else:
        decisive = max(p, key=p.__getitem__)
        value = p[decisive]
    shown = contrasts[decisive]
    lines = [_line(f"{claim.ours} - {name}", one, margin) for name, one in contrasts.items()]
    return _verdict(
        claim, "refuted" if wrong else "holds",
        estimate=shown.value, intervals=[_ends(shown)], p=value,
        detectable=detectable(shown, level), questions=shown.questions, contrasts=lines,
    )  # fmt: skip


def _equivalence(
    claim: EquivalenceClaim, models: Mapping[str, Model], ranks: Mapping[int, Model], level: float
) -> Verdict:
    contrast = paired_contrast(models[claim.ours], models[claim.theirs])
    nearer = float(np.copysign(claim.margin, contrast.value))
    # The larger p-value of the two one-sided tests is that at the nearer end of the margin.
    two_sided = contrast.p_value(nearer)
    inside = abs(contrast.value) < claim.margin
    p = two_sided / 2 if inside else 1 - two_sided / 2
    outside = not inside and two_sided < level
    return _verdict(
        claim, "holds" if p < level else "refuted" if outside else "undecided",
        estimate=contrast.value, intervals=[_ends(contrast)], p=p,
        detectable=detectable(contrast, level), questions=contrast.questions,
        contrasts=[_line(f"{claim.ours} - {claim.theirs}", contrast)],
        rank_test=_rank_test(claim.set, ranks),
    )  # fmt: skip


def _rank_test(name: str | None, ranks: Mapping[int, Model]) -> RankTest | None:
    if name is None:
        return None
    found = rank_seed_test(_shared(ranks.values()))
    return RankTest(set=name, f=found.f, degrees=found.degrees, p=found.p) if found else None


# ---------------------------------------------------------------- ratios
def _ratio(claim: RatioClaim, models: Mapping[str, Model], level: float) -> Verdict:
    """`gain_ratio` and the test of one ratio."""
    values = [models[name].values_SQ for name in (claim.ours, claim.theirs, claim.base)]
    ratio = gain_ratio(*values)
    means = crossed_means(shared_questions(*values))
    gains_K = [1, 0, -1], [0, 1, -1]
    ours, theirs = (means.contrast(each) for each in gains_K)
    excess = means.contrast([1, -claim.threshold, claim.threshold - 1], fewest=gains_K)
    gains = theirs.value > 0
    detected = detectable(excess, level)
    return _verdict(
        claim, "holds" if excess.value > 0 else "refuted",
        estimate=ratio.value, intervals=ratio.intervals,
        p=max(excess.p_value(), theirs.p_value()) if gains else 1.0,
        detectable=detected / theirs.value if detected is not None and gains else None,
        questions=means.questions,
        contrasts=[
            _line(f"{claim.ours} - {claim.base}", ours),
            _line(f"{claim.theirs} - {claim.base}", theirs),
        ],
    )  # fmt: skip


# ---------------------------------------------------------------- correlations
def _correlation(
    claim: CorrelationClaim, models: Mapping[int, Model], rewards: Mapping[int, float]
) -> Verdict:
    ranks_R = np.array(list(models), dtype=np.float64)
    marks_SRQ = np.stack([model.values_SQ for model in models.values()], axis=1)
    found = rank_statistics(ranks_R, marks_SRQ, RESAMPLES)
    slope = rank_slope(ranks_R, list(models.values()))
    value, low, high = (found.get(f"pearson{end}") for end in ("", "_low", "_high"))
    scores = {rank: float(np.nanmean(model.values_SQ)) for rank, model in models.items()}
    p = 1.0
    if value is not None and low is not None and high is not None:
        p = max(slope.p_value(), correlation_p(value, low, high))
    return _verdict(
        claim, "holds" if (value or 0) > 0 else "refuted",
        estimate=value, intervals=[(low, high)], p=p, detectable=None,
        questions=slope.questions, contrasts=[_line("score a rank up", slope)],
        points=[
            Point(rank=rank, score=score, mean_reward=rewards.get(rank))
            for rank, score in scores.items()
        ],
    )  # fmt: skip


def rank_slope(ranks_R: np.ndarray, models: Sequence[Model]) -> Contrast:
    """Least-squares slope of score over goodness of rank, as a contrast of means; the students of
    one seed belong together. Its sign is that of Pearson's r."""
    centred_R = ranks_R.mean() - ranks_R
    weights_R = centred_R / (centred_R @ centred_R)
    return crossed_means([np.einsum("r,srq->sq", weights_R, _shared(models))]).contrast([1.0])


def _shared(models: Iterable[Model]) -> Floats:
    """(S, R, Q) values of the students of each rank on the questions that all have."""
    return np.stack(shared_questions(*(model.values_SQ for model in models)), axis=1)


def correlation_p(value: float, low: float, high: float) -> float:
    """Two-sided p-value of r = 0 whose 95% interval, normal on Fisher's z scale, is [low, high]."""
    largest = float(np.tanh(LARGEST_Z))
    z, *ends = np.arctanh(np.clip([value, low, high], -largest, largest))
    half = max(z - ends[0], ends[1] - z)
    if half == 0:
        return 0.0 if value else 1.0
    return float(2 * ndtr(-abs(z) * Z_95 / half))
