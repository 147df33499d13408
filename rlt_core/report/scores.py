"""What the models score: overall, by seed, and against each other on the same questions."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from rlt_core.config import RankedSet

if TYPE_CHECKING:
    from rlt_core.evaluation.crossed import Floats
    from rlt_core.evaluation.intervals import Estimate
    from rlt_core.report.inputs import Part, Parts

BASE = "base"
"""Variant of the evaluation that the others are compared with."""
RANKED = re.compile(rf"(?:(?:{'|'.join(get_args(RankedSet))})-)?rank-\d+")
"""Students of the rank ablation: they have their own table."""
_MEASURED = ("value", "low", "high", "questions", "ungraded", "grader_failed")
ALL = "all"
"""In `scores.csv`: the line over all seeds of a model."""


@dataclass(frozen=True)
class ScoreLine:
    """One metric of one model on one task; `seed` None: over all its seeds."""

    task: str
    model: str
    metric: str
    seed: int | None
    seeds: int
    value: float
    low: float
    high: float
    questions: int
    samples: int
    ungraded: int
    grader_failed: int
    """Completions counted as wrong because the grader hung or died on them."""
    difference: Estimate | None
    """Against the base model on the same questions; None for the base model itself."""


@dataclass(frozen=True)
class PairLine:
    """One model against another on the same questions."""

    task: str
    metric: str
    model: str
    other: str
    difference: Estimate


class Evaluations:
    """Answers of all evaluated models, question by question.

    Shapes: S seeds of a model, Q questions of a task, N samples a question.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts.by_variant("evaluation")
        self._answers = {
            part.name: _answers(
                part.rows("eval_samples", "task", "question_id", "sample", "outcome")
            )
            for part in parts.of("evaluation")
        }
        self._scores = {part.name: part.rows("eval_scores") for part in parts.of("evaluation")}

    @property
    def students(self) -> list[str]:
        """Models that are no students of a rank, the base model first."""
        found = [variant for variant in self.parts if not RANKED.fullmatch(variant)]
        return sorted(found, key=lambda variant: variant != BASE)

    def tasks(self, variants: Sequence[str]) -> list[str]:
        """What any of some models was asked, in the order in which it was."""
        asked = (self._answers[part.name] for one in variants for part in self.parts.get(one, []))
        return list(dict.fromkeys(task for answers in asked for task in answers))

    def asked(self, variant: str, task: str) -> list[Part]:
        """The evaluations of a model, one a seed, that have a task."""
        return [part for part in self.parts.get(variant, []) if task in self._answers[part.name]]

    def questions(self, task: str) -> list[str]:
        """Every question of a task that any model was asked, in the order of their names."""
        found = (answers[task] for answers in self._answers.values() if task in answers)
        return sorted(set().union(*found))

    def correct(self, variant: str, task: str) -> Floats:
        """(S, Q, N) over `questions`: 1, 0, or NaN where there is no answer or it was not graded;
        of `asked`, in its order."""
        import numpy as np

        places = {question: place for place, question in enumerate(self.questions(task))}
        by_seed = [self._answers[part.name][task] for part in self.asked(variant, task)]
        samples = [sample for marks in by_seed for each in marks.values() for sample in each]
        correct_SQN = np.full((len(by_seed), len(places), max(samples, default=-1) + 1), np.nan)
        for s, marks in enumerate(by_seed):
            for question, each in marks.items():
                for sample, mark in each.items():
                    correct_SQN[s, places[question], sample] = np.nan if mark is None else mark
        return correct_SQN

    def ungraded(self, variant: str, task: str) -> int:
        """Completions of a model, over its seeds, that are in no score."""
        return sum(
            mark is None
            for part in self.asked(variant, task)
            for each in self._answers[part.name][task].values()
            for mark in each.values()
        )

    def grader_failed(self, variant: str, task: str) -> int:
        """Completions of a model, over its seeds, counted as wrong because the grader failed."""
        by_seed = (self._scores[part.name] for part in self.asked(variant, task))
        return sum(
            next((row["grader_failed"] or 0 for row in rows if row["task"] == task), 0)
            for rows in by_seed
        )

    def by_question(self, variant: str, task: str, metric: str) -> list[dict[str, float]]:
        """Question -> value of a metric, one entry a seed of the model that has any."""
        value = _metric(metric)
        by_seed = []
        for part in self.parts.get(variant, []):
            answers = self._answers[part.name].get(task, {})
            graded = {
                question: [mark for mark in each.values() if mark is not None]
                for question, each in answers.items()
            }
            values = {question: value(marks) for question, marks in graded.items() if marks}
            by_seed.append({q: each for q, each in values.items() if each is not None})
        return [values for values in by_seed if values]

    def metrics(self, variant: str) -> Iterator[tuple[str, str, list[tuple[Part, dict[str, Any]]]]]:
        """(task, metric, its row of `eval_scores` from each seed) of a model, where it has one;
        without pass@1, which is avg@n by definition."""
        found: dict[tuple[str, str], list[tuple[Part, dict[str, Any]]]] = defaultdict(list)
        for part in self.parts[variant]:
            for row in self._scores[part.name]:
                if row["value"] is not None and row["metric"] != "pass@1":
                    found[row["task"], row["metric"]].append((part, row))
        yield from ((task, metric, rows) for (task, metric), rows in found.items())


Marks = dict[str, dict[str, dict[int, bool | None]]]


def _answers(rows: Sequence[dict[str, Any]]) -> Marks:
    """task -> question -> sample -> whether it is correct; None where it was not graded."""
    from rlt_core.evaluation.scores import UNGRADED

    found: Marks = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        mark = None if row["outcome"] in UNGRADED else row["outcome"] == "correct"
        found[row["task"]][row["question_id"]][row["sample"]] = mark
    return found


def _metric(name: str) -> Callable[[list[bool]], float | None]:
    """The value of one question under `avg@n` or `pass@k`; None where it has too few answers."""
    from rlt_core.evaluation.intervals import pass_at_k

    kind, _, number = name.partition("@")
    if kind == "avg":
        return lambda marks: sum(marks) / len(marks)
    k = int(number)
    return lambda marks: pass_at_k(sum(marks), len(marks), k) if len(marks) >= k else None


# ---------------------------------------------------------------- lines
def score_lines(evaluations: Evaluations) -> list[ScoreLine]:
    """Every model but the rank students: over its seeds, and each seed where it has several."""
    lines = [
        line
        for variant in evaluations.students
        for task, metric, rows in evaluations.metrics(variant)
        for line in _lines(evaluations, variant, task, metric, rows)
    ]
    tasks = list(dict.fromkeys(line.task for line in lines))
    return sorted(lines, key=lambda line: tasks.index(line.task))


def _lines(
    evaluations: Evaluations,
    variant: str,
    task: str,
    metric: str,
    rows: list[tuple[Part, dict[str, Any]]],
) -> Iterator[ScoreLine]:
    from rlt_core.report.statistics import fraction, matrix

    by_question = evaluations.by_question(variant, task, metric)
    base = evaluations.by_question(BASE, task, metric)
    common = {"task": task, "model": variant, "metric": metric, "samples": rows[0][1]["samples"]}
    by_seed = []
    for (part, row), values in zip(rows, by_question, strict=True):
        measured = {name: row[name] for name in _MEASURED}
        difference = _against(base, [values]) if variant != BASE else None
        by_seed.append(
            ScoreLine(**common, **measured, seed=part.seed, seeds=1, difference=difference)
        )
    if len(by_seed) == 1:
        yield ScoreLine(**(vars(by_seed[0]) | {"seed": None}))
        return
    completions = sum(line.questions * line.samples for line in by_seed)
    overall = vars(fraction(matrix(by_question), completions))
    difference = _against(base, by_question) if variant != BASE else None
    yield ScoreLine(
        **common,
        **overall,
        seed=None,
        seeds=len(by_seed),
        ungraded=sum(line.ungraded for line in by_seed),
        grader_failed=sum(line.grader_failed for line in by_seed),
        difference=difference,
    )
    yield from by_seed


def _against(base: list[dict[str, float]], ours: list[dict[str, float]]) -> Estimate | None:
    from rlt_core.report.statistics import paired_difference

    return paired_difference(ours, base) if base else None


def pair_lines(evaluations: Evaluations) -> list[PairLine]:
    """Every pair of models but the rank students, on the questions of each task (avg@n)."""
    from rlt_core.report.statistics import paired_difference

    measured = {
        (variant, task, metric)
        for variant in evaluations.students
        for task, metric, _ in evaluations.metrics(variant)
        if metric.startswith("avg@")
    }
    scores = dict.fromkeys((task, metric) for _, task, metric in sorted(measured))
    return [
        PairLine(
            task,
            metric,
            ours,
            theirs,
            paired_difference(
                evaluations.by_question(ours, task, metric),
                evaluations.by_question(theirs, task, metric),
            ),
        )
        for task, metric in scores
        for theirs, ours in itertools.combinations(evaluations.students, 2)
        if {(ours, task, metric), (theirs, task, metric)} <= measured
    ]
