"""One model on some tasks: completions, grades, scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rlt_core.config import EvaluationConfig, StageResources
from rlt_core.control import Control
from rlt_core.errors import UserError
from rlt_core.evaluation.budget import Forcer
from rlt_core.evaluation.completions import TOO_LONG, Completer, Request, Written, requests_of
from rlt_core.evaluation.scores import score_rows
from rlt_core.evaluation.tasks import EvalTask
from rlt_core.formats import PromptFormat
from rlt_core.grading import Grade, GradeItem, Grader
from rlt_core.rows import write_rows

if TYPE_CHECKING:
    from rlt_core.generation import Engine
    from rlt_core.prompts import Prompter

Row = dict[str, Any]


class Examination:
    """A model's evaluation: `answer` the `requests`, all or some and wherever, then `score`.

    `key`: of the evaluation; sampling seeds derive from it. `label`: the model's name in
    eval_scores, its key when empty. The engine is opened when the first request is answered; as a
    context manager it closes that and the grader. Raises UserError for no task, or one named twice.
    """

    def __init__(
        self,
        model: Path,
        tasks: Sequence[EvalTask],
        config: EvaluationConfig,
        *,
        format: PromptFormat,
        key: str,
        seed: int,
        model_key: str,
        label: str | None = None,
        resources: StageResources,
    ) -> None:
        names = [task.name for task in tasks]
        if not names or len(set(names)) != len(names):
            raise UserError("evaluation.tasks must be a non-empty list of different names")
        from rlt_core.models import load_tokenizer
        from rlt_core.prompts import Prompter

        self._model, self._config, self._resources = model, config, resources
        self._tasks = [
            EvalTask(task.name, task.questions[: config.max_questions]) for task in tasks
        ]
        self._prompter = Prompter(format, load_tokenizer(model))
        self._key, self._label = key, label or model_key
        self._constant = {"seed": seed, "model": model_key}
        self._grader = Grader(config.grading_timeout_s)
        self.requests = requests_of(self._tasks, config, self._prompter)

    @cached_property
    def _engine(self) -> Engine:
        from rlt_core.generation import open_engine

        return open_engine(self._model, self._config.dtype, self._resources)

    def answer(self, requests: Sequence[Request], control: Control) -> list[Row]:
        """Rows of eval_samples, graded, in the requests' order. Raises Stopped."""
        config, prompter = self._config, self._prompter
        forcer = Forcer(prompter, config.budget, config.max_tokens) if config.budget else None
        completer = Completer(self._engine, config, prompter.stop_ids, self._key, forcer)
        completed = completer.complete(requests, control)
        texts = [[prompter.decode(one.ids) for one in group] for group in completed]
        grades = iter(self._grader.grade_many(self._items(requests, texts)))
        return [
            self._row(request, sample, text, one, next(grades))
            for request, group, written in zip(requests, texts, completed, strict=True)
            for sample, text, one in zip(request.samples, group, written, strict=True)
        ]

    def _items(
        self, requests: Sequence[Request], texts: Sequence[Sequence[str]]
    ) -> list[GradeItem]:
        return [
            GradeItem(
                solution=given_solution(self._prompter, text),
                answer=request.question["answer"],
                grader=request.question["grader"],
                metadata=request.question["metadata"],
            )
            for request, group in zip(requests, texts, strict=True)
            for text in group
        ]

    def _row(self, request: Request, sample: int, text: str, one: Written, grade: Grade) -> Row:
        return {
            "task": request.task,
            **self._constant,
            "question_id": request.question["question_id"],
            "sample": sample,
            "question": request.question["question"],
            "completion": text,
            "extracted": grade.extracted,
            "answer": request.question["answer"],
            "outcome": grade.outcome,
            "finish_reason": one.finish_reason,
            "completion_tokens": len(one.ids),
        }

    def score(self, samples: Sequence[Row], out: Path) -> dict[str, float]:
        """Grades of all requests to scores, by lighteval and with our intervals; writes both tables
        to `out`.

        Returns `{task}/{metric}` -> fraction, `{task}/ungraded` -> completions left out and, where
        there are any, `{task}/too_long` -> those whose prompt leaves no room in the context.
        """
        from rlt_core.evaluation.adapter import run_tasks

        grades: dict[tuple[str, str], list[Row]] = {}
        for row in samples:
            grades.setdefault((row["task"], row["question_id"]), []).append(row)
        means = run_tasks(self._tasks, grades, out)
        scores = score_rows(samples, self._config.pass_at, self._label)
        _require_agreement(means, scores)
        write_rows(out / "eval_samples.parquet", "eval_samples", samples)
        write_rows(out / "eval_scores.parquet", "eval_scores", scores)
        return _metrics(scores) | _too_long(samples)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._grader.close()
        if "_engine" in vars(self):
            self._engine.close()


def given_solution(prompter: Prompter, text: str) -> str | None:
    """What a completion gives as its solution: the solution block; all of it if it uses no tag of
    the format (a model that never saw it); None if it began with the format and did not end."""
    solution = prompter.split_answer(text).solution
    if solution is not None:
        return solution
    tags = (prompter.format.thought_open, prompter.format.solution_open)
    return None if any(tag in text for tag in tags) else text


def _require_agreement(means: Mapping[str, float], scores: Sequence[Row]) -> None:
    """lighteval's mean of a task is ours. Raises RuntimeError where a question was lost."""
    for row in scores:
        if row["metric"].startswith("avg@"):
            ours = math.nan if row["value"] is None else row["value"]
            theirs = means[row["task"]]
            same = math.isclose(ours, theirs, abs_tol=1e-9)
            if not (same or (math.isnan(ours) and math.isnan(theirs))):
                raise RuntimeError(
                    f"{row['task']}: {row['metric']} {ours}, lighteval says {theirs}"
                )


def _metrics(scores: Sequence[Row]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for row in scores:
        metrics[f"{row['task']}/ungraded"] = float(row["ungraded"])
        if row["value"] is not None:
            metrics[f"{row['task']}/{row['metric']}"] = row["value"]
    return metrics


def _too_long(samples: Sequence[Row]) -> dict[str, float]:
    counts: dict[str, float] = {}
    for row in samples:
        if row["finish_reason"] == TOO_LONG:
            name = f"{row['task']}/{TOO_LONG}"
            counts[name] = counts.get(name, 0.0) + 1.0
    return counts
