"""The answers of all evaluated models, question by question, and the overlap of what two solve."""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import get_args

import numpy as np

from rlt_core.config import RankedSet
from rlt_core.evaluation.crossed import Floats
from rlt_core.evaluation.intervals import Estimate
from rlt_core.evaluation.overlap import overlap
from rlt_core.evaluation.scores import UNGRADED
from rlt_core.report import paper
from rlt_core.report.inputs import Part, Parts, Row

BASE = "base"
"""Variant of the evaluation that the others are compared with."""
DATASET = "dataset"
"""Variant of the student of the data set's traces."""
RANKED = re.compile(rf"(?:(?:{'|'.join(get_args(RankedSet))})-)?rank-\d+")
"""Students of the rank ablation: they have their own table."""
COLUMNS = (
    "task", "model", "metric", "seed", "value", "low", "high", "questions", "samples", "ungraded",
    "grader_failed",
)  # fmt: skip
"""Columns of `scores.csv`: those of `eval_scores`; `model` is the name in the graph."""
OVERLAP_COLUMNS = (
    "first", "second", "task", "first_seed", "second_seed", "questions", "solved_by_first",
    "solved_by_second", "solved_by_both", "measure", "value", "low", "high", "chance", "paper",
)  # fmt: skip
"""Columns of `overlaps.csv`; `paper` is the paper's number for the pair. A row has the Measure as
`measured`, too."""
Marks = dict[tuple[str, int], float]
"""(Question, sample) -> 1 if it is correct, 0 if not, NaN where it was not graded."""


class Evaluations:
    """Answers of all evaluated models.

    Shapes: S seeds of a model, Q questions of a task, N samples per question.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts.by_variant("evaluation")
        evaluations = parts.of("evaluation")
        self._marks = {part.name: _marks(part) for part in evaluations}
        self.scores = [
            row | {"model": part.variant, "seed": part.seed}
            for part in evaluations
            for row in part.rows("eval_scores")
        ]
        """Rows of `scores.csv`."""

    @property
    def students(self) -> list[str]:
        """Models except the students of a rank; those that others are compared with first."""
        found = [variant for variant in self.parts if not RANKED.fullmatch(variant)]
        return sorted(found, key=lambda variant: (variant != BASE, variant != DATASET))

    @property
    def pass_at(self) -> list[Row]:
        """Rows of pass@k for k above 1 of the students: `value` is an Estimate."""
        return [
            row
            | {"value": Estimate(*(row[name] for name in ("value", "low", "high", "questions")))}
            for row in self.scores
            if row["model"] in self.students
            and row["metric"].startswith("pass@")
            and row["metric"] != "pass@1"
            and row["value"] is not None
        ]

    def tasks(self, variants: Sequence[str]) -> list[str]:
        """Tasks of any of some models, in the order in which they were asked."""
        asked = (self._marks[part.name] for one in variants for part in self.parts.get(one, []))
        return list(dict.fromkeys(task for marks in asked for task in marks))

    def asked(self, variant: str, task: str) -> list[Part]:
        """The evaluations of a model, one per seed, that have a task."""
        return [part for part in self.parts.get(variant, []) if task in self._marks[part.name]]

    def correct(self, variant: str, task: str) -> Floats:
        """(S, Q, N) by `asked` and by the names of all questions that any model was asked: 1, 0,
        or NaN where there is no answer or it was not graded."""
        every = {name for marks in self._marks.values() for name, _ in marks.get(task, ())}
        place = {name: q for q, name in enumerate(sorted(every))}
        by_seed = [self._marks[part.name][task] for part in self.asked(variant, task)]
        samples = 1 + max((sample for marks in by_seed for _, sample in marks), default=-1)
        correct_SQN = np.full((len(by_seed), len(place), samples), np.nan)
        for s, marks in enumerate(by_seed):
            for (question, sample), mark in marks.items():
                correct_SQN[s, place[question], sample] = mark
        return correct_SQN

    def counted(self, variant: str, task: str, column: str) -> int:
        """Completions of a model, over its seeds, by a column of `eval_scores`: `ungraded`, in no
        score, or `grader_failed`, counted as wrong because the grader hung or died."""
        named = [row for row in self.scores if (row["model"], row["task"]) == (variant, task)]
        by_seed = {row["seed"]: row[column] or 0 for row in named}  # all metrics have the same
        return sum(by_seed.values())


def _marks(part: Part) -> dict[str, Marks]:
    """Task -> the answers of an evaluation."""
    found: dict[str, Marks] = defaultdict(dict)
    for row in part.rows("eval_samples", "task", "question_id", "sample", "outcome"):
        mark = np.nan if row["outcome"] in UNGRADED else float(row["outcome"] == "correct")
        found[row["task"]][row["question_id"], row["sample"]] = mark
    return found


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
