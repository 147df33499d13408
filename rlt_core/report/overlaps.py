"""Overlap of the problems that two models solve, for the pairs of an experiment."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlt_core.evaluation.overlap import Overlap, overlap
from rlt_core.report import paper
from rlt_core.report.scores import Evaluations


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
    """The paper's number for this pair."""


def overlap_lines(
    pairs: Sequence[tuple[str, str]], evaluations: Evaluations
) -> Iterator[OverlapLine]:
    """One per pair, task and seed: two trained models are compared seed by seed, a model without
    seeds with every seed. Seeds are not pooled: the ceiling is that of one model with itself. A
    pair without graded answers has no line."""
    for pair in pairs:
        quoted = paper.OVERLAP[1] if pair == paper.OVERLAP[0] else None
        for task in evaluations.tasks(pair):
            ours, theirs = (
                zip(evaluations.asked(model, task), evaluations.correct(model, task), strict=True)
                for model in pair
            )
            for (one, ours_QN), (other, theirs_QN) in itertools.product(ours, theirs):
                if one.seed != other.seed and None not in (one.seed, other.seed):
                    continue
                try:
                    found = overlap(ours_QN, theirs_QN)
                except ValueError:  # no question in common
                    continue
                yield OverlapLine(*pair, task, one.seed, other.seed, found, quoted)
