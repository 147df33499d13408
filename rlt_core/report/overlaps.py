"""Overlap of the problems that two models solve, for the pairs of an experiment."""

import itertools
from collections.abc import Iterator, Sequence

from rlt_core.evaluation.overlap import overlap
from rlt_core.report import paper
from rlt_core.report.inputs import Row
from rlt_core.report.scores import Evaluations

COLUMNS = (
    "first", "second", "task", "first_seed", "second_seed", "questions", "solved_by_first",
    "solved_by_second", "solved_by_both", "measure", "value", "low", "high", "chance", "paper",
)  # fmt: skip
"""Columns of `overlaps.csv`; `paper` is the paper's number for the pair. A row has the Measure as
`measured`, too."""


def overlap_rows(pairs: Sequence[tuple[str, str]], evaluations: Evaluations) -> Iterator[Row]:
    """One row per pair, task, seed and measure: two trained models are compared seed by seed, a
    model without seeds with every seed. A pair without graded answers has no row."""
    for pair in pairs:
        for task in evaluations.tasks(pair):
            first, second = (
                zip(evaluations.asked(model, task), evaluations.correct(model, task), strict=True)
                for model in pair
            )
            for (one, one_QN), (other, other_QN) in itertools.product(first, second):
                if one.seed != other.seed and None not in (one.seed, other.seed):
                    continue
                try:
                    found = overlap(one_QN, other_QN)
                except ValueError:  # no question in common
                    continue
                for name, measure in found.measures.items():
                    yield vars(measure) | {
                        "first": pair[0], "second": pair[1], "task": task,
                        "first_seed": one.seed, "second_seed": other.seed,
                        "questions": found.questions, "solved_by_first": found.ours,
                        "solved_by_second": found.theirs, "solved_by_both": found.both,
                        "measure": name, "measured": measure,
                        "paper": paper.OVERLAP[1] if pair == paper.OVERLAP[0] else None,
                    }  # fmt: skip
