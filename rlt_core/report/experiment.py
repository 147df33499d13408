"""An experiment's table: what its rows score, and how they differ from their baselines.

Shapes: S, T training seeds of two models, Q questions, N samples a question. A score has two
intervals (`rlt_core.evaluation.crossed`): of these checkpoints, and of the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from rlt_core.evaluation.comparisons import Ratio, difference, gain_ratio, holm, mcnemar_p
from rlt_core.evaluation.crossed import Floats, method_score, question_means, shared_questions
from rlt_core.evaluation.intervals import Estimate, clustered_mean
from rlt_core.report import paper
from rlt_core.report.means import mean_contrast, mean_estimate
from rlt_core.report.scores import Evaluations
from rlt_core.stages import ReportConfig, TableRow

DATASET, BASE = "dataset", "base"
"""Variants of the students whose gain is the measure of others', of any size and amount of data:
`dataset-large-subset` over `base-large`."""


@dataclass(frozen=True)
class Quote:
    """A number of the paper."""

    percent: float
    is_mean: bool
    from_others: bool
    """Whether the paper quotes it, too."""


@dataclass(frozen=True)
class Score:
    """Of one row on one task, as fractions."""

    checkpoint: Estimate
    """The seeds as they are."""
    method: Estimate | None
    """Training seeds random; None where there are not several."""
    by_seed: dict[int | None, float]
    questions: int
    samples: int | None
    """Completions a question; None of a mean over tasks that differ in it."""
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
    mcnemar: float | None
    """Where both have one binary answer a question."""
    detectable: float | None


@dataclass(frozen=True)
class Line:
    """A row of the table of one task; None: it did not run, or nothing could be graded."""

    row: TableRow
    quote: Quote | None
    score: Score | None
    against: Against | None
    share: Ratio | None
    """Of the data-set student's gain."""
    models: tuple[str, ...]
    """Keys, one a seed."""
    evaluations: tuple[str, ...]


@dataclass(frozen=True)
class TaskTable:
    """All rows on one task, or on the mean of all."""

    task: str
    lines: list[Line]


@dataclass(frozen=True)
class Experiment:
    """The tables of its tasks and, where there are several, of their mean."""

    tables: list[TaskTable]
    primary: TableRow | None
    """Row whose contrast was named before the run."""

    @property
    def rows(self) -> list[TableRow]:
        """In the table's order."""
        return [line.row for line in self.tables[0].lines]

    def row(self, model: str | None) -> TableRow | None:
        """By its model."""
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
    tables = [
        TaskTable(one.task, _adjusted([one.line(row) for row in config.rows], config.primary))
        for one in answers
    ]
    if len(tables) > 1:
        tables.append(TaskTable(paper.MEAN, _mean_lines(config, tables, answers)))
    if not tables:
        nothing = [Line(row, None, None, None, None, (), ()) for row in config.rows]
        tables = [TaskTable("", nothing)]
    rows = {row.model: row for row in config.rows}
    return Experiment(tables, rows.get(config.primary) if config.primary else None)


def quote(row: TableRow, task: str) -> Quote | None:
    """The paper's number of a row, if the task is one of the paper's or the mean of all."""
    percent = paper.NUMBERS.get(row.paper or "", {}).get(task)
    if percent is None:
        return None
    return Quote(percent, task == paper.MEAN, row.paper in paper.FROM_OTHERS)


# ---------------------------------------------------------------- one task
class _TaskAnswers:
    """What all rows answered to the questions of one task."""

    def __init__(self, config: ReportConfig, evaluations: Evaluations, task: str) -> None:
        self.task = task
        self.rows = {row.model: row for row in config.rows}
        self.parts = {model: evaluations.asked(model, task) for model in self.rows}
        self.ungraded = {model: evaluations.ungraded(model, task) for model in self.rows}
        self.grader_failed = {model: evaluations.grader_failed(model, task) for model in self.rows}
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
        """On the questions that every seed was graded on."""
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
            ungraded=self.ungraded[row.model],
            grader_failed=self.grader_failed[row.model],
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
        return Against(
            baseline=baseline,
            checkpoint=Tested(found.checkpoint, found.checkpoint_p, found.checkpoint_p),
            method=method,
            mcnemar=self._mcnemar(ours, theirs, row, baseline),
            detectable=found.detectable,
        )

    def _mcnemar(
        self, ours: Floats, theirs: Floats, row: TableRow, baseline: TableRow
    ) -> float | None:
        one_answer = all(
            self.correct[model].shape[::2] == (1, 1) for model in (row.model, baseline.model)
        )
        return mcnemar_p(ours[0], theirs[0]) if one_answer else None

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
def _adjusted(lines: Sequence[Line], primary: str | None) -> list[Line]:
    """Holm's p-values over the rows of a task: those of checkpoints are one family, those of
    methods another. The primary contrast is in neither."""
    differing = {line.row.model: line.against for line in lines if line.against}
    checkpoints = _holm({model: each.checkpoint for model, each in differing.items()}, primary)
    methods = _holm(
        {model: each.method for model, each in differing.items() if each.method}, primary
    )
    return [
        replace(
            line,
            against=replace(
                line.against,
                checkpoint=checkpoints[line.row.model],
                method=methods.get(line.row.model),
            ),
        )
        if line.against
        else line
        for line in lines
    ]


def _holm(family: dict[str, Tested], primary: str | None) -> dict[str, Tested]:
    adjusted = holm(
        {model: each.p for model, each in family.items()}, primary if primary in family else None
    )
    return {model: replace(each, holm=adjusted[model]) for model, each in family.items()}


# ---------------------------------------------------------------- the mean over tasks
def _mean_lines(
    config: ReportConfig, tables: Sequence[TaskTable], answers: Sequence[_TaskAnswers]
) -> list[Line]:
    """Of the rows that have every task."""
    the_paper_s = {table.task for table in tables} == set(paper.TASKS)
    lines = []
    for number, row in enumerate(config.rows):
        each = [table.lines[number] for table in tables]
        scores = [line.score for line in each if line.score]
        complete = len(scores) == len(tables)
        lines.append(
            Line(
                row=row,
                quote=quote(row, paper.MEAN) if the_paper_s else None,
                score=_mean_score(row, scores, answers) if complete else None,
                against=_mean_against(row, answers) if complete else None,
                share=None,
                models=each[0].models,
                evaluations=each[0].evaluations,
            )
        )
    return _adjusted(lines, config.primary)


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
    same = all(
        one.seeds(baseline.model) == two.seeds(baseline.model) for one, two in pairwise(answers)
    )
    if len(pairs) < len(answers) or not same:
        return None
    as_they_are = [[each.mean(axis=0, keepdims=True) for each in pair] for pair in pairs]
    checkpoint = mean_contrast(as_they_are, [1.0, -1.0])
    ours, theirs = (len(each) for each in pairs[0])
    method = None
    if row.trained and ours > 1 and (theirs > 1 or not baseline.trained):
        if answers[0].paired(row, baseline):
            method = mean_contrast([[one - other] for one, other in pairs], [1.0])
        else:
            method = mean_contrast(pairs, [1.0, -1.0])
    questions = sum(pair[0].shape[1] for pair in pairs)
    tested = [
        Tested(replace(each.interval(), questions=questions), each.p_value(), each.p_value())
        for each in (checkpoint, method)
        if each
    ]
    return Against(
        baseline=baseline,
        checkpoint=tested[0],
        method=tested[1] if method else None,
        mcnemar=None,
        detectable=None,
    )
