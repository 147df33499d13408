"""Do two models solve the same problems? Lines of an experiment's pairs of models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlt_core.evaluation.overlap import MEASURES, Overlap, overlap
from rlt_core.report import paper
from rlt_core.report.scores import Evaluations

MEASURE_NAMES = dict(
    zip(MEASURES, ("first's also solved by second", "second's also solved by first", "Jaccard"),
        strict=True)
)  # fmt: skip


@dataclass(frozen=True)
class OverlapLine:
    """Two models with the same seed on one task."""

    ours: str
    theirs: str
    task: str
    ours_seed: int | None
    theirs_seed: int | None
    overlap: Overlap
    quoted: str | None
    """What the paper says of this pair."""


def overlap_lines(pairs: Sequence[tuple[str, str]], evaluations: Evaluations) -> list[OverlapLine]:
    """A line a pair, task and seed: of two trained models seed s meets seed s, a model without
    seeds meets each. Seeds are not pooled: the ceiling is that of one model with itself. A pair
    of which nothing was graded has no line."""
    return [
        line
        for pair in pairs
        for task in evaluations.tasks(pair)
        for line in _lines(pair, task, evaluations)
    ]


def _lines(pair: tuple[str, str], task: str, evaluations: Evaluations) -> Iterator[OverlapLine]:
    ours, theirs = (
        {
            part.seed: correct_QN
            for part, correct_QN in zip(
                evaluations.asked(model, task), evaluations.correct(model, task), strict=True
            )
        }
        for model in pair
    )
    quoted = paper.OVERLAP[1] if pair == paper.OVERLAP[0] else None
    for one, other in ((one, other) for one in ours for other in theirs):
        if one != other and one is not None and other is not None:
            continue
        try:
            found = overlap(ours[one], theirs[other])
        except ValueError:  # no question in common
            continue
        yield OverlapLine(*pair, task, one, other, found, quoted)
