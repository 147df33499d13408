"""An experiment's table: the scores of its rows, and their differences from their baselines.

Shapes: S, T training seeds of two models, Q questions, N samples per question. A score has two
intervals (`rlt_core.evaluation.crossed`): for these checkpoints, and for the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlt_core.evaluation.comparisons import Ratio, difference, gain_ratio, holm, mcnemar_p
from rlt_core.evaluation.crossed import (
    Contrast,
    Floats,
    method_score,
    question_means,
    shared_questions,
)
from rlt_core.evaluation.intervals import Estimate, clustered_mean
from rlt_core.report import paper
from rlt_core.report.scores import Evaluations
from rlt_core.report.statistics import mean_contrast, mean_estimate
from rlt_core.stages import ReportConfig, TableRow

DATASET, BASE = "dataset", "base"
"""Prefixes of the variants whose gain is the reference for others: a student of the data set and
its base, of any size and amount of data (`dataset-large-subset` over `base-large`)."""


@dataclass(frozen=True)
class Quote:
    """A number of the paper."""

    percent: float
    is_mean: bool
    from_others: bool
    """Whether the paper quotes it, too."""


@dataclass(frozen=True)
class Score:
    """One row on one task, as fractions."""

    checkpoint: Estimate
    """For these seeds."""
    method: Estimate | None
    """With random training seeds; None for a single seed."""
    by_seed: dict[int | None, float]
    questions: int
    samples: int | None
    """Completions per question; None for a mean over tasks that differ in it."""
    ungraded: int
    """Completions, over all seeds, that are in no score."""
    grader_failed: int
    """Completions, over all seeds, counted as wrong because the grader hung or died on them."""


@dataclass(frozen=True)
class Tested:
    """A difference of fractions with its interval, its p-value, and Holm's over the rows."""

    difference: Estimate
    p: float
    holm: float


@dataclass(frozen=True)
class Against:
    """A row minus its baseline, on the same questions."""

    baseline: TableRow
    checkpoint: Tested
    method: Tested | None
    mcnemar: float | None = None
    """Where both have one binary answer per question."""
    detectable: float | None = None


@dataclass(frozen=True)
class Line:
    """A row of the table of one task; None: it did not run, or nothing could be graded."""

    row: TableRow
    quote: Quote | None = None
    score: Score | None = None
    against: Against | None = None
    share: Ratio | None = None
    """Share of the data-set student's gain."""
    models: tuple[str, ...] = ()
    """Keys, one per seed."""
    evaluations: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskTable:
    """All rows on one task, or on the mean of all."""

    task: str
    lines: list[Line]


@dataclass(frozen=True)
class Experiment:
    """The tables of its tasks and, where there are several, of their mean."""

    rows: tuple[TableRow, ...]
    tables: list[TaskTable]
    primary: TableRow | None
    """Row whose contrast was named before the run."""

    def row(self, model: str | None) -> TableRow | None:
        """The row of a model."""
        return next((row for row in self.rows if row.model == model), None)


def experiment(config: ReportConfig, evaluations: Evaluations) -> Experiment | None:
    """The tables; None for a report without rows. Raises ValueError for a row that should have an
    evaluation among the report's inputs and has none."""
    if not config.rows:
        return None
    for row in config.rows:
        if not row.missing and row.model not in evaluations.parts:
            raise ValueError(f"row {row.name!r}: no evaluation[{row.model}] to read")
    tasks = evaluations.tasks([row.model for row in config.rows])
    answers = [_TaskAnswers(config, evaluations, task) for task in tasks]
    lines = {one.task: [one.line(row) for row in config.rows] for one in answers}
    if len(tasks) > 1:
        lines[paper.MEAN] = [_mean_line(row, lines, answers) for row in config.rows]
    tables = [TaskTable(task, _adjusted(each, config.primary)) for task, each in lines.items()]
    if not tables:
        tables = [TaskTable("", [Line(row) for row in config.rows])]
    rows = {row.model: row for row in config.rows}
    return Experiment(config.rows, tables, rows.get(config.primary or ""))


def quote(row: TableRow, task: str) -> Quote | None:
    """The paper's number of a row, if the task is one of the paper's or the mean of all."""
    percent = paper.NUMBERS.get(row.paper or "", {}).get(task)
    if percent is None:
        return None
    return Quote(percent, task == paper.MEAN, row.paper in paper.FROM_OTHERS)


# ---------------------------------------------------------------- one task
class _TaskAnswers:
    """The answers of all rows to the questions of one task."""

    def __init__(self, config: ReportConfig, evaluations: Evaluations, task: str) -> None:
        self.task = task
        self.rows = {row.model: row for row in config.rows}
        self.evaluations = evaluations
        self.parts = {model: evaluations.asked(model, task) for model in self.rows}
        self.correct = {
            model: evaluations.correct(model, task) for model, parts in self.parts.items() if parts
        }
        self.values = {model: question_means(each) for model, each in self.correct.items()}

    def seeds(self, model: str) -> list[int | None]:
        return [part.seed for part in self.parts[model]]

    def line(self, row: TableRow) -> Line:
        parts = self.parts[row.model]
        return Line(
            row=row,
            quote=quote(row, self.task),
            score=self._score(row) if parts else None,
            against=self._against(row),
            share=self._share(row),
            models=tuple(part.manifest.inputs["model"].key for part in parts),
            evaluations=tuple(part.manifest.ref.key for part in parts),
        )

    def _score(self, row: TableRow) -> Score | None:
        """On the questions that were graded for every seed."""
        correct_SQN, values_SQ = self.correct[row.model], self.values[row.model]
        graded_Q = ~np.isnan(values_SQ).any(axis=0)
        completions = int((~np.isnan(correct_SQN[:, graded_Q])).sum())
        checkpoint = clustered_mean(values_SQ[:, graded_Q].mean(axis=0).tolist(), completions)
        if checkpoint is None:
            return None
        means = values_SQ[:, graded_Q].mean(axis=1).tolist()
        return Score(
            checkpoint=checkpoint,
            method=method_score(correct_SQN) if row.trained else None,
            by_seed=dict(zip(self.seeds(row.model), means, strict=True)),
            questions=checkpoint.questions,
            samples=correct_SQN.shape[-1],
            ungraded=self.evaluations.ungraded(row.model, self.task),
            grader_failed=self.evaluations.grader_failed(row.model, self.task),
        )

    def shared(self, *models: str) -> list[Floats] | None:
        """(S, Q) values of models on the questions that all were graded on; None without any."""
        if not all(model in self.values for model in models):
            return None
        values = [self.values[model] for model in models]
        graded_Q = np.all([~np.isnan(each).any(axis=0) for each in values], axis=0)
        return shared_questions(*values) if graded_Q.any() else None

    def paired(self, row: TableRow, baseline: TableRow) -> bool:
        """Whether seed s of both shares a teacher and the order of the data."""
        both = row.trained and baseline.trained
        return both and self.seeds(row.model) == self.seeds(baseline.model)

    def _against(self, row: TableRow) -> Against | None:
        baseline = self.rows.get(row.baseline or "")
        shared = self.shared(row.model, baseline.model) if baseline else None
        if baseline is None or shared is None:
            return None
        ours, theirs = shared
        found = difference(
            ours, theirs, self.paired(row, baseline), theirs_trained=baseline.trained
        )
        method = None
        if row.trained and found.method and found.method_p is not None:
            method = Tested(found.method, found.method_p, found.method_p)
        answers = [self.correct[model].shape[::2] for model in (row.model, baseline.model)]  # S, N
        return Against(
            baseline=baseline,
            checkpoint=Tested(found.checkpoint, found.checkpoint_p, found.checkpoint_p),
            method=method,
            mcnemar=mcnemar_p(ours[0], theirs[0]) if answers == [(1, 1)] * 2 else None,
            detectable=found.detectable,
        )

    def _share(self, row: TableRow) -> Ratio | None:
        reference = self.rows.get(row.baseline or "")
        base = self.rows.get((reference and reference.baseline) or "")
        if reference is None or base is None or not _measures_gain(reference.model, base.model):
            return None
        shared = self.shared(row.model, reference.model, base.model)
        return gain_ratio(*shared) if shared else None


def _measures_gain(reference: str, base: str) -> bool:
    """Whether these are a data-set student and the model that it started from."""
    after_rl = reference.endswith("+rl")
    return reference.startswith(DATASET) and base.startswith(BASE) and not after_rl


# ---------------------------------------------------------------- families of tests
def _adjusted(lines: list[Line], primary: str | None) -> list[Line]:
    """Holm's p-values over the rows of a task: the tests of checkpoints are one family, the
    tests of methods another. The primary contrast is in neither."""
    for family in ("checkpoint", "method"):
        tested = {
            line.row.model: found
            for line in lines
            if line.against and (found := getattr(line.against, family))
        }
        p_values = {model: found.p for model, found in tested.items()}
        adjusted = holm(p_values, primary if primary in tested else None)
        changed = {
            model: {family: replace(found, holm=adjusted[model])} for model, found in tested.items()
        }
        lines = [
            replace(line, against=replace(line.against, **changed[line.row.model]))
            if line.against and line.row.model in changed
            else line
            for line in lines
        ]
    return lines


# ---------------------------------------------------------------- the mean over tasks
def _mean_line(
    row: TableRow, lines: dict[str, list[Line]], answers: Sequence[_TaskAnswers]
) -> Line:
    """The mean of a row that has every task."""
    each = [line for one in answers for line in lines[one.task] if line.row is row]
    scores = [line.score for line in each if line.score]
    complete = len(scores) == len(answers)
    has_paper_tasks = {one.task for one in answers} == set(paper.TASKS)
    return Line(
        row=row,
        quote=quote(row, paper.MEAN) if has_paper_tasks else None,
        score=_mean_score(row, scores, answers) if complete else None,
        against=_mean_against(row, answers) if complete else None,
        models=each[0].models,
        evaluations=each[0].evaluations,
    )


def _mean_score(
    row: TableRow, scores: Sequence[Score], answers: Sequence[_TaskAnswers]
) -> Score | None:
    """The method's interval is never narrower than that of these checkpoints."""
    seeds = list(scores[0].by_seed)
    if any(list(score.by_seed) != seeds for score in scores):
        return None
    checkpoint = mean_estimate([score.checkpoint for score in scores])
    method = None
    if len(seeds) > 1 and row.trained:
        values = [shared for one in answers if (shared := one.shared(row.model))]
        random = mean_contrast(values, [1.0]).interval()
        low, high = min(random.low, checkpoint.low), max(random.high, checkpoint.high)
        method = replace(checkpoint, low=max(0.0, low), high=min(1.0, high))
    return Score(
        checkpoint=checkpoint,
        method=method,
        by_seed={
            seed: sum(score.by_seed[seed] for score in scores) / len(scores) for seed in seeds
        },
        questions=checkpoint.questions,
        samples=scores[0].samples if len({score.samples for score in scores}) == 1 else None,
        ungraded=sum(score.ungraded for score in scores),
        grader_failed=sum(score.grader_failed for score in scores),
    )


def _mean_against(row: TableRow, answers: Sequence[_TaskAnswers]) -> Against | None:
    """With t intervals and t tests of `mean_contrast`: tasks cannot be resampled as one."""
    baseline = answers[0].rows.get(row.baseline or "")
    if baseline is None:
        return None
    pairs = [shared for one in answers if (shared := one.shared(row.model, baseline.model))]
    if len(pairs) < len(answers) or any(
        one.seeds(baseline.model) != answers[0].seeds(baseline.model) for one in answers
    ):
        return None
    questions = sum(ours_SQ.shape[1] for ours_SQ, _ in pairs)

    def tested(contrast: Contrast) -> Tested:
        interval = replace(contrast.interval(), questions=questions)
        return Tested(interval, contrast.p_value(), contrast.p_value())

    seed_means = [[each.mean(axis=0, keepdims=True) for each in pair] for pair in pairs]
    ours, theirs = (len(each) for each in pairs[0])
    method = None
    if row.trained and ours > 1 and (theirs > 1 or not baseline.trained):
        if answers[0].paired(row, baseline):
            method = tested(mean_contrast([[one - other] for one, other in pairs], [1.0]))
        else:
            method = tested(mean_contrast(pairs, [1.0, -1.0]))
    return Against(baseline, tested(mean_contrast(seed_means, [1.0, -1.0])), method)
