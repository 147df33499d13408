"""Scores of the models: overall, by seed, and against each other on the same questions."""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np

from rlt_core.config import RankedSet
from rlt_core.evaluation.crossed import Floats, fraction
from rlt_core.evaluation.intervals import Estimate, pass_at_k
from rlt_core.evaluation.scores import UNGRADED
from rlt_core.report.inputs import Part, Parts, Row
from rlt_core.report.statistics import matrix, paired_difference, seeds_of

BASE = "base"
"""Variant of the evaluation that the others are compared with."""
DATASET = "dataset"
"""Variant of the student of the data set's traces."""
RANKED = re.compile(rf"(?:(?:{'|'.join(get_args(RankedSet))})-)?rank-\d+")
"""Students of the rank ablation: they have their own table."""
COLUMNS = (
    "task", "model", "metric", "seed", "value", "low", "high", "questions", "samples", "ungraded",
    "grader_failed", "difference", "difference_low", "difference_high",
)  # fmt: skip
"""Columns of `scores.csv`: one metric of one model on one task. In a row, `value` and `difference`
(against the base model on the same questions; None for the base model itself) are Estimates, and
`seed` is None over all seeds. `grader_failed` counts completions that are wrong because the grader
hung or died on them."""
Marks = dict[str, dict[int, bool | None]]
"""Question -> sample -> whether it is correct; None where it was not graded."""


class Evaluations:
    """Answers of all evaluated models, question by question.

    Shapes: S seeds of a model, Q questions of a task, N samples per question.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts.by_variant("evaluation")
        evaluations = parts.of("evaluation")
        self._answers = {part.name: _answers(part) for part in evaluations}
        self._scores = {part.name: part.rows("eval_scores") for part in evaluations}

    @property
    def students(self) -> list[str]:
        """Models except the students of a rank; those that others are compared with first."""
        found = [variant for variant in self.parts if not RANKED.fullmatch(variant)]
        return sorted(found, key=lambda variant: (variant != BASE, variant != DATASET))

    def tasks(self, variants: Sequence[str]) -> list[str]:
        """Tasks of any of some models, in the order in which they were asked."""
        asked = (self._answers[part.name] for one in variants for part in self.parts.get(one, []))
        return list(dict.fromkeys(task for answers in asked for task in answers))

    def asked(self, variant: str, task: str) -> list[Part]:
        """The evaluations of a model, one per seed, that have a task."""
        return [part for part in self.parts.get(variant, []) if task in self._answers[part.name]]

    def marks(self, variant: str, task: str) -> list[Marks]:
        """Answers of a model to a task, one entry per evaluation of `asked`."""
        return [self._answers[part.name][task] for part in self.asked(variant, task)]

    def correct(self, variant: str, task: str) -> Floats:
        """(S, Q, N) by `asked` and by the names of all questions that any model was asked: 1, 0,
        or NaN where there is no answer or it was not graded."""
        questions = sorted(
            {name for answers in self._answers.values() for name in answers.get(task, ())}
        )
        by_seed = self.marks(variant, task)
        samples = [sample for marks in by_seed for each in marks.values() for sample in each]
        correct_SQN = np.full((len(by_seed), len(questions), max(samples, default=-1) + 1), np.nan)
        for s, marks in enumerate(by_seed):
            for q, question in enumerate(questions):
                for sample, mark in marks.get(question, {}).items():
                    correct_SQN[s, q, sample] = np.nan if mark is None else mark
        return correct_SQN

    def counted(self, variant: str, task: str, column: str) -> int:
        """Completions of a model, over its seeds, by a column of `eval_scores`: `ungraded`, in no
        score, or `grader_failed`, counted as wrong because the grader hung or died."""
        rows = [self._scores[part.name] for part in self.asked(variant, task)]
        found = (next((row for row in each if row["task"] == task), {}) for each in rows)
        return sum(row.get(column) or 0 for row in found)

    def by_question(self, variant: str, task: str, metric: str) -> list[dict[str, float]]:
        """Question -> value of a metric, one entry per seed of the model that has any."""
        by_seed = [
            {
                question: value
                for question, each in marks.items()
                if (value := _value(metric, each)) is not None
            }
            for marks in self.marks(variant, task)
        ]
        return [values for values in by_seed if values]

    def metrics(self, variant: str) -> Iterator[tuple[str, str, list[tuple[int | None, Row]]]]:
        """(task, metric, seeds and their rows of `eval_scores`) of a model, where it has a value;
        without pass@1, which is avg@n by definition."""
        found: dict[tuple[str, str], list[tuple[int | None, Row]]] = defaultdict(list)
        for part in self.parts[variant]:
            for row in self._scores[part.name]:
                if row["value"] is not None and row["metric"] != "pass@1":
                    found[row["task"], row["metric"]].append((part.seed, row))
        yield from ((task, metric, rows) for (task, metric), rows in found.items())


def _answers(part: Part) -> dict[str, Marks]:
    """Task -> the answers of an evaluation."""
    found: dict[str, Marks] = defaultdict(lambda: defaultdict(dict))
    for row in part.rows("eval_samples", "task", "question_id", "sample", "outcome"):
        mark = None if row["outcome"] in UNGRADED else row["outcome"] == "correct"
        found[row["task"]][row["question_id"]][row["sample"]] = mark
    return found


def _value(metric: str, marks: Mapping[int, bool | None]) -> float | None:
    """Value of one question under `avg@n` or `pass@k`; None where it has too few answers."""
    kind, _, number = metric.partition("@")
    graded = [mark for mark in marks.values() if mark is not None]
    if kind == "avg":
        return sum(graded) / len(graded) if graded else None
    return pass_at_k(sum(graded), len(graded), int(number)) if len(graded) >= int(number) else None


# ---------------------------------------------------------------- rows
def by_information(rows: Sequence[Row]) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """Task -> its rows: of the tasks that tell models apart (of all, if none does), and of those on
    which every model has the same score."""
    tasks: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        tasks[row["task"]].append(row)
    alike = {
        task: scored
        for task, each in tasks.items()
        if len(scored := [row for row in each if row["value"]]) > 1
        and len({row["value"].value for row in scored}) == 1
    }
    differing = {task: each for task, each in tasks.items() if task not in alike}
    return (differing, alike) if differing else (tasks, {})


def score_table(evaluations: Evaluations) -> list[Row]:
    """Every model except the rank students: over its seeds, and each seed where it has several."""
    found = [
        row
        for variant in evaluations.students
        for task, metric, rows in evaluations.metrics(variant)
        for row in _score_rows(evaluations, variant, task, metric, rows)
    ]
    tasks = list(dict.fromkeys(row["task"] for row in found))
    return sorted(found, key=lambda row: tasks.index(row["task"]))


def _score_rows(
    evaluations: Evaluations,
    variant: str,
    task: str,
    metric: str,
    rows: list[tuple[int | None, Row]],
) -> Iterator[Row]:
    by_question = evaluations.by_question(variant, task, metric)
    base = evaluations.by_question(BASE, task, metric) if variant != BASE else []
    counted = ("questions", "ungraded", "grader_failed")

    def found(values: list[dict[str, float]], estimate: Estimate, **others: Any) -> Row:
        return {
            "task": task, "model": variant, "metric": metric, "value": estimate,
            "samples": rows[0][1]["samples"], "seeds": len(values),
            "difference": paired_difference(values, base) if base else None, **others,
        }  # fmt: skip

    by_seed = [
        found(
            [values], Estimate(row["value"], row["low"], row["high"], row["questions"]), seed=seed,
            **{name: row[name] for name in counted},
        )
        for (seed, row), values in zip(rows, by_question, strict=True)
    ]  # fmt: skip
    if len(by_seed) == 1:
        yield by_seed[0] | {"seed": None}
        return
    completions = sum(each["questions"] * each["samples"] for each in by_seed)
    failed = {name: sum(each[name] for each in by_seed) for name in counted[1:]}
    overall = fraction(matrix(by_question), completions)
    yield found(by_question, overall, seed=None, questions=overall.questions, **failed)
    yield from by_seed


def pair_table(evaluations: Evaluations) -> list[Row]:
    """Every pair of models except the rank students, on the questions of each task (avg@n)."""
    values = {
        (task, metric, variant): evaluations.by_question(variant, task, metric)
        for variant in evaluations.students
        for task, metric, _ in evaluations.metrics(variant)
        if metric.startswith("avg@")
    }
    scores = dict.fromkeys((task, metric) for task, metric, _ in sorted(values))
    return [
        {
            "task": task,
            "model": ours,
            "against": theirs,
            "difference": paired_difference(one, other),
            "seeds": seeds_of(one, other),
        }
        for task, metric in scores
        for theirs, ours in itertools.combinations(evaluations.students, 2)
        if (one := values.get((task, metric, ours)))
        and (other := values.get((task, metric, theirs)))
    ]
