"""An experiment's table: one row per model and task, with its difference from its baseline.

Shapes: S, T training seeds of two models, Q questions, N samples per question. A score has two
intervals (`rlt_core.evaluation.crossed`): for these checkpoints, and for the method.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlt_core.evaluation.comparisons import difference, gain_ratio, holm
from rlt_core.evaluation.crossed import (
    Floats,
    crossed_mean,
    method_score,
    question_means,
    shared_questions,
)
from rlt_core.evaluation.intervals import clustered_mean
from rlt_core.report import paper
from rlt_core.report.inputs import Row
from rlt_core.report.scores import BASE, DATASET, Evaluations
from rlt_core.report.statistics import joined, mean_estimate, paired_difference
from rlt_core.stages import ReportConfig, TableRow

COLUMNS = (
    "row", "model", "task", "missing", "paper_row", "paper_percent", "paper_mean_percent",
    "paper_from_others", "value", "low", "high", "method_low", "method_high", "by_seed",
    "questions", "samples", "seeds", "ungraded", "grader_failed", "baseline", "primary",
    "difference", "difference_low", "difference_high", "p", "p_holm",
    "method_difference", "method_difference_low", "method_difference_high", "method_p",
    "method_p_holm", "detectable", "share", "share_set", "share_seeds_random", "model_keys",
    "evaluation_keys",
)  # fmt: skip
"""Columns of `table.csv`. Our numbers are fractions, the paper's percent.

In a row, `value`, `method`, `difference` and `method_difference` are Estimates, `gain` is the share
of the data-set student's gain with its words, and `against` is the baseline's name; None where
something did not run or could not be graded. The paper quotes numbers `from_others`, too.
`samples` is None for a mean over tasks that differ in it; `ungraded` counts completions, over all
seeds, that are in no score, `grader_failed` those that count as wrong because the grader hung or
died."""
OTHERS = ("method", "gain", "against")


WANTED = (("rlt", DATASET), ("rlt", BASE), ("rlt+rl", "rlt"), (DATASET, BASE))
"""Pairs that a report without an experiment's rows compares, the primary one first."""


@dataclass(frozen=True)
class Experiment:
    """The tables of its tasks and, where there are several, of their mean."""

    tables: Mapping[str, list[Row]]
    """Task, or `mean` -> one row per model."""
    contrasts: list[Row]
    """The differences that answer the experiment's question, the primary one first: rows like those
    of the tables."""

    @property
    def quotes(self) -> bool:
        """Whether a row has a number of the paper."""
        return any(row["paper_mean_percent"] for row in self.rows)

    @property
    def last(self) -> list[Row]:
        """The rows of the mean, or of the only task."""
        return list(self.tables.values())[-1]

    @property
    def rows(self) -> list[Row]:
        """The rows of all tables."""
        return [row for rows in self.tables.values() for row in rows]

    @property
    def alike(self) -> set[str]:
        """Tasks on which every model has the same score, unless no task tells models apart."""
        scores = {
            task: [row["value"].value for row in rows if row["value"]]
            for task, rows in self.tables.items()
        }
        found = {task for task, each in scores.items() if len(each) > 1 and len({*each}) == 1}
        return found if found < scores.keys() else set()


def experiment(
    config: ReportConfig, evaluations: Evaluations, finished: bool = True
) -> Experiment | None:
    """Return the tables, of a report without rows those of all models against the base; None
    without models. Raises ValueError for a row of a finished run that should have an evaluation
    among the report's inputs and has none."""
    models = list(config.rows) or [_against_base(one) for one in evaluations.students]
    if not models:
        return None
    for place, one in enumerate(models):
        if not one.missing and one.model not in evaluations.parts:
            if finished:
                raise ValueError(f"row {one.name!r}: no evaluation[{one.model}] to read")
            models[place] = one.model_copy(update={"missing": "did not run"})
    tasks = evaluations.tasks([one.model for one in models])
    answers = [_TaskAnswers(models, evaluations, task, bool(config.rows)) for task in tasks]
    tables = {each.task: [each.row(one) for one in models] for each in answers}
    if config.rows and len(tasks) > 1:
        mean = _MeanAnswers(answers, dict(tables))
        tables[paper.MEAN] = [mean.row(one) for one in models]
    for rows in tables.values():
        _adjust(rows, config.primary)
    tables = tables or {"": [_row(one, "") for one in models]}
    for row in itertools.chain(*tables.values()):
        row["primary"] = row["model"] == config.primary
    if config.rows:
        last = [*tables.values()][-1]
        differing = (row for row in last if row["difference"])
        contrasts = sorted(differing, key=lambda row: not row["primary"])
    else:
        contrasts = [row for each in answers[:1] for row in _pairs(each)]
    return Experiment(tables, contrasts)


def _against_base(model: str, baseline: str = BASE) -> TableRow:
    trained = model != BASE
    return TableRow(
        name=model, model=model, baseline=baseline if trained else None, trained=trained
    )


def _pairs(answers: "_TaskAnswers") -> Iterator[Row]:
    """Yield those of `WANTED` whose models were tested on a task; of others one pair."""
    tested = list(answers.correct)
    pairs = [pair for pair in WANTED if {*pair} <= {*tested}]
    if not pairs and len(tested) > 1:
        pairs = [(tested[1], tested[0])]
    for model, baseline in pairs:
        row = answers.row(_against_base(model, baseline))
        if row["difference"]:
            yield row | {"primary": (model, baseline) == WANTED[0]}


def _row(model: TableRow, task: str) -> Row:
    """Return a row without results; the paper's numbers where the task is one of the paper's."""
    quoted = paper.NUMBERS.get(model.paper or "", {})
    return dict.fromkeys((*COLUMNS, *OTHERS)) | {
        "row": model.name, "model": model.model, "task": task, "missing": model.missing,
        "paper_row": model.paper, "paper_percent": quoted.get(task),
        "paper_mean_percent": quoted.get(paper.MEAN),
        "paper_from_others": model.paper in paper.FROM_OTHERS if model.paper else None,
        "baseline": model.baseline,
    }  # fmt: skip


# ---------------------------------------------------------------- one task
class _TaskAnswers:
    """The answers of all models to the questions of one task."""

    def __init__(
        self, models: Sequence[TableRow], evaluations: Evaluations, task: str, resamples: bool
    ) -> None:
        """`resamples`: whether intervals of differences for these checkpoints come from resampling
        questions, as an experiment's do; else they are t intervals."""
        self.task, self.resamples = task, resamples
        self.models = {one.model: one for one in models}
        self.evaluations = evaluations
        self.parts = {model: evaluations.asked(model, task) for model in self.models}
        self.correct = {
            model: evaluations.correct(model, task) for model, parts in self.parts.items() if parts
        }
        self.values = {model: question_means(each) for model, each in self.correct.items()}

    def seeds(self, model: str) -> list[int | None]:
        return [part.seed for part in self.parts[model]]

    def row(self, model: TableRow) -> Row:
        parts = self.parts[model.model]
        keys = {
            "model_keys": [part.manifest.inputs["model"].key for part in parts],
            "evaluation_keys": [part.manifest.ref.key for part in parts],
        }
        score = self._score(model) if parts else {}
        return _row(model, self.task) | score | self._against(model) | self._share(model) | keys

    def _score(self, model: TableRow) -> Row:
        """On the questions that were graded for every seed."""
        correct_SQN, values_SQ = self.correct[model.model], self.values[model.model]
        graded_Q = ~np.isnan(values_SQ).any(axis=0)
        completions = int((~np.isnan(correct_SQN[:, graded_Q])).sum())
        checkpoint = clustered_mean(values_SQ[:, graded_Q].mean(axis=0).tolist(), completions)
        if checkpoint is None:
            return {}
        means = values_SQ[:, graded_Q].mean(axis=1).tolist()
        return {
            "value": checkpoint,
            "method": method_score(correct_SQN) if model.trained else None,
            "by_seed": dict(zip(self.seeds(model.model), means, strict=True)),
            "seeds": len(means),
            "questions": checkpoint.questions,
            "samples": correct_SQN.shape[-1],
            **{
                name: self.evaluations.counted(model.model, self.task, name)
                for name in ("ungraded", "grader_failed")
            },
        }

    def shared(self, *models: str) -> list[Floats] | None:
        """(S, Q) values of models on the questions that all were graded on; None without any."""
        if not all(model in self.values for model in models):
            return None
        values = [self.values[model] for model in models]
        graded_Q = np.all([~np.isnan(each).any(axis=0) for each in values], axis=0)
        return shared_questions(*values) if graded_Q.any() else None

    def _against(self, model: TableRow) -> Row:
        """The model minus its baseline, on the same questions."""
        baseline = self.models.get(model.baseline or "")
        shared = self.shared(model.model, baseline.model) if baseline else None
        if baseline is None or shared is None:
            return {}
        ours, theirs = shared
        both = model.trained and baseline.trained
        # Seed s of both then shares a teacher and the order of the data.
        paired = both and self.seeds(model.model) == self.seeds(baseline.model)
        found = difference(ours, theirs, paired, theirs_trained=baseline.trained)
        method = model.trained and found.method_p is not None
        return {
            "against": baseline.name,
            "difference": found.checkpoint if self.resamples else paired_difference(ours, theirs),
            "p": found.checkpoint_p,
            "method_difference": found.method if method else None,
            "method_p": found.method_p if method else None,
            "detectable": found.detectable,
        }

    def _share(self, model: TableRow) -> Row:
        """Its share of the gain of the data-set student."""
        reference = self.models.get(model.baseline or "")
        base = self.models.get((reference and reference.baseline) or "")
        if reference is None or base is None or not _measures_gain(reference.model, base.model):
            return {}
        shared = self.shared(model.model, reference.model, base.model)
        if shared is None:
            return {}
        gain = gain_ratio(*shared)
        if gain.denominator.value < 0:
            return {"gain": gain}
        return {
            "gain": gain,
            "share": gain.value,
            "share_set": [f"{low}:{high}" for low, high in gain.intervals],
            "share_seeds_random": gain.seeds_random,
        }


def _measures_gain(reference: str, base: str) -> bool:
    """Whether these are a data-set student and the model that it started from, of any size and
    amount of data: `dataset-large-subset` and `base-large`."""
    after_rl = reference.endswith("+rl")
    return reference.startswith(DATASET) and base.startswith(BASE) and not after_rl


def _adjust(rows: Sequence[Row], primary: str | None) -> None:
    """Add Holm's p-values over the rows of a task: the tests of checkpoints are one family, the
    tests of methods another. The primary contrast is in neither."""
    for p in ("p", "method_p"):
        p_values = {row["model"]: row[p] for row in rows if row[p] is not None}
        adjusted = holm(p_values, primary if primary in p_values else None)
        for row in rows:
            row[f"{p}_holm"] = adjusted.get(row["model"])


# ---------------------------------------------------------------- the mean over tasks
class _MeanAnswers(_TaskAnswers):
    """The answers of all models to the questions of all tasks, each task counting the same."""

    def __init__(self, tasks: Sequence[_TaskAnswers], tables: Mapping[str, Sequence[Row]]) -> None:
        self.task, self.resamples, self.tasks, self.tables = paper.MEAN, True, tasks, tables
        self.models, self.parts = tasks[0].models, tasks[0].parts

    def row(self, model: TableRow) -> Row:
        row = super().row(model)
        if {one.task for one in self.tasks} != set(paper.TASKS):
            row["paper_percent"] = None
        return row

    def shared(self, *models: str) -> list[Floats] | None:
        """Values of models that have every task, with the same seeds."""
        each = [one.shared(*models) for one in self.tasks]
        seeds = [[one.seeds(model) for model in models] for one in self.tasks]
        found = [values for values in each if values is not None]
        if len(found) < len(each) or any(one != seeds[0] for one in seeds):
            return None
        return [joined(values) for values in zip(*found, strict=True)]

    def _score(self, model: TableRow) -> Row:
        """The method's interval is never narrower than that of these checkpoints."""
        rows = (row for table in self.tables.values() for row in table)
        scores = [row for row in rows if row["model"] == model.model]
        if any(one["value"] is None for one in scores) or self.shared(model.model) is None:
            return {}
        checkpoint = mean_estimate([score["value"] for score in scores])
        by_task = [values for one in self.tasks for values in one.shared(model.model) or ()]
        method = None
        if len(by_task[0]) > 1 and model.trained:
            random = crossed_mean(joined(by_task, centred=True))
            low, high = min(random.low, checkpoint.low), max(random.high, checkpoint.high)
            method = replace(checkpoint, low=max(0.0, low), high=min(1.0, high))
        samples = {one["samples"] for one in scores}
        means = np.mean([values_SQ.mean(axis=1) for values_SQ in by_task], axis=0)
        return {
            "value": checkpoint,
            "method": method,
            "by_seed": dict(zip(self.seeds(model.model), means.tolist(), strict=True)),
            "seeds": len(means),
            "questions": checkpoint.questions,
            "samples": samples.pop() if len(samples) == 1 else None,
            "ungraded": sum(score["ungraded"] for score in scores),
            "grader_failed": sum(score["grader_failed"] for score in scores),
        }
