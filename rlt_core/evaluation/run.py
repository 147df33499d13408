"""One model on some tasks: completions, grades, scores."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rlt_core.config import EvaluationConfig, StageResources
from rlt_core.errors import UserError
from rlt_core.evaluation.benchmarks import EvalTask
from rlt_core.evaluation.budget_forcing import Draft, Forcer
from rlt_core.evaluation.scores import score_rows
from rlt_core.grading import GradeItem, Grader
from rlt_core.progress import Metrics, Progress
from rlt_core.prompts.format import PromptFormat
from rlt_core.rows import write_rows

if TYPE_CHECKING:
    from rlt_core.generation import Engine
    from rlt_core.prompts.renderer import Renderer

Row = dict[str, Any]
log = logging.getLogger(__name__)

TOO_LONG = "too_long"
"""Finish reason where the prompt leaves no room in the model's context: nothing was asked."""


@dataclass(frozen=True)
class SampleRequest:
    """Some completions of one question."""

    task: str
    question: Mapping[str, Any]
    """A row of an `EvalTask`."""
    prompt_ids: list[int]
    samples: range
    """Which of the question's completions."""


@dataclass(frozen=True)
class EvalCompletion:
    """One completion."""

    ids: list[int]
    finish_reason: str


def requests_of(
    tasks: Sequence[EvalTask], config: EvaluationConfig, renderer: Renderer
) -> list[SampleRequest]:
    """All that is asked, in the tasks' order. No request has more than `config.n` completions, so
    that requests are alike where a task has more of them, and any of them can share the work."""
    return [
        SampleRequest(task.name, question, prompt_ids, samples)
        for task in tasks
        for question in task.questions
        for prompt_ids in [renderer.student_prompt(question["question"])]
        for samples in _pieces(config.samples_of(task.name), config.n)
    ]


def _pieces(total: int, size: int) -> Iterator[range]:
    for start in range(0, total, size):
        yield range(start, min(start + size, total))


class ModelEvaluation:
    """A model's evaluation: `run` has lighteval generate, grade and score.

    Completions come from `complete`, which may be called with some of the `requests` at a time, in
    several processes. `key`: of the evaluation; sampling seeds derive from it. `label`: the model's
    name in eval_scores, its key when empty. The engine is opened when the first request is
    completed; as a context manager it closes that and the grader. Raises UserError for no task, or
    one named twice.
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
        from rlt_core.prompts.renderer import Renderer

        self._model, self._config, self._resources = model, config, resources
        self._tasks = [
            EvalTask(task.name, task.questions[: config.max_questions]) for task in tasks
        ]
        self._renderer = Renderer(format, load_tokenizer(model))
        self._key, self._label = key, label or model_key
        self._constant = {"seed": seed, "model": model_key}
        self._grader = Grader(config.grading_timeout_s)
        self.requests = requests_of(self._tasks, config, self._renderer)

    @cached_property
    def _engine(self) -> Engine:
        from rlt_core.generation import open_engine

        return open_engine(self._model, self._config.dtype, self._resources)

    def complete(self, requests: Sequence[SampleRequest], progress: Progress) -> list[Row]:
        """Rows of eval_samples without grades, in the requests' order. Raises Stopped."""
        config, renderer = self._config, self._renderer
        forcer = Forcer(renderer, config.budget, config.max_tokens) if config.budget else None
        completer = Completer(self._engine, config, renderer.stop_ids, self._key, forcer)
        return [
            self._row(request, sample, one)
            for request, written in zip(
                requests, completer.complete(requests, progress), strict=True
            )
            for sample, one in zip(request.samples, written, strict=True)
        ]

    def _row(self, request: SampleRequest, sample: int, one: EvalCompletion) -> Row:
        return {
            "task": request.task,
            **self._constant,
            "question_id": request.question["question_id"],
            "sample": sample,
            "question": request.question["question"],
            "completion": self._renderer.decode(one.ids),
            "extracted": None,
            "answer": request.question["answer"],
            "outcome": None,
            "finish_reason": one.finish_reason,
            "completion_tokens": len(one.ids),
        }

    def run(
        self, answer: Callable[[], Sequence[Row]], out: Path, progress: Progress
    ) -> dict[str, float]:
        """Evaluate the model with lighteval and write both tables to `out`.

        `answer`: rows of all requests, from `complete`. Returns `{task}/{metric}` -> fraction,
        `{task}/ungraded` -> completions left out, `{task}/grader_failed` -> those counted as wrong
        because the grader hung or died and, where there are any, `{task}/too_long` -> those whose
        prompt leaves no room in the context, `{task}/ungradable` -> questions whose right answer
        is not graded correct against itself: they are not graded. Raises Stopped.
        """
        from rlt_core.evaluation.adapter import run_tasks

        def grade(question: Mapping[str, Any], texts: Sequence[str]) -> list[Row]:
            progress.check()
            return self._grades(question, texts)

        def score(samples: Sequence[Row]) -> list[Row]:
            return score_rows(samples, self._config.pass_at, self._label)

        samples_of = self._config.samples_of
        tasks, ungradable = self._checked()
        results = run_tasks(tasks, samples_of, answer, grade, score, out)
        write_rows(out / "eval_samples.parquet", "eval_samples", results.samples)
        write_rows(out / "eval_scores.parquet", "eval_scores", results.scores)
        known = {name: value for name, value in results.metrics.items() if value == value}
        counts = {
            f"{row['task']}/{name}": float(row[name])
            for row in results.scores
            for name in ("ungraded", "grader_failed")
        }
        return known | counts | ungradable | _too_long(results.samples)

    def _checked(self) -> tuple[list[EvalTask], dict[str, float]]:
        """The tasks, questions whose right answer is not graded correct against itself without
        their grader, and the numbers of those as metrics."""
        tasks, counts = [], {}
        for task in self._tasks:
            failing = self._grader.self_check(task.questions)
            if failing:
                first = task.questions[failing[0]]
                log.warning(
                    "task %s: %d right answers are not graded correct against themselves, so their "
                    "questions are not graded (outcome ungradable); question %s: %r",
                    task.name, len(failing), first["question_id"], first["answer"],
                )  # fmt: skip
                counts[f"{task.name}/ungradable"] = float(len(failing))
            questions = [
                {**question, "grader": "none"} if place in failing else question
                for place, question in enumerate(task.questions)
            ]
            tasks.append(EvalTask(task.name, questions))
        return tasks, counts

    def _grades(self, question: Mapping[str, Any], texts: Sequence[str]) -> list[Row]:
        items = [
            GradeItem(
                solution=given_solution(self._renderer, text),
                answer=question["answer"],
                grader=question["grader"],
                metadata=question["metadata"],
            )
            for text in texts
        ]
        grades = self._grader.grade_many(items)
        return [{"extracted": grade.extracted, "outcome": grade.outcome} for grade in grades]

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


def given_solution(renderer: Renderer, text: str) -> str | None:
    """What a completion gives as its solution: the solution block; all of it if it uses no tag of
    the format (a model that never saw it); None if it began with the format and did not end."""
    solution = renderer.split_answer(text).solution
    if solution is not None:
        return solution
    tags = (renderer.format.thought_open, renderer.format.solution_open)
    return None if any(tag in text for tag in tags) else text


def _too_long(samples: Sequence[Row]) -> dict[str, float]:
    counts = Counter(row["task"] for row in samples if row["finish_reason"] == TOO_LONG)
    return {f"{task}/{TOO_LONG}": float(count) for task, count in counts.items()}


# ---------------------------------------------------------------- completions
@dataclass(frozen=True)
class Completer:
    """Completes requests."""

    engine: Engine
    config: EvaluationConfig
    stop_ids: Sequence[int]
    key: str
    """Of the evaluation; sampling seeds derive from it."""
    forcer: Forcer | None = None
    """Forces the length of thinking; empty: completions are left as they are drawn."""

    def complete(
        self, requests: Sequence[SampleRequest], progress: Progress
    ) -> list[list[EvalCompletion]]:
        """The completions of each request. Progress counts completions. Raises Stopped."""
        fitting = [one for one in requests if len(one.prompt_ids) < self.engine.context]
        write = self._force if self.forcer else self._draw
        written = iter(write(fitting, progress) if fitting else [])
        nothing = EvalCompletion([], TOO_LONG)
        return [
            next(written)
            if len(one.prompt_ids) < self.engine.context
            else [nothing for _ in one.samples]
            for one in requests
        ]

    def _draw(
        self, requests: Sequence[SampleRequest], progress: Progress
    ) -> list[list[EvalCompletion]]:
        completions = self.engine.generate(
            [request.prompt_ids for request in requests],
            self.config,
            [[self._seed(request, sample) for sample in request.samples] for request in requests],
            self.stop_ids,
            progress,
        )
        return [
            [EvalCompletion(list(one.ids), one.finish_reason) for one in group]
            for group in completions
        ]

    def _force(
        self, requests: Sequence[SampleRequest], progress: Progress
    ) -> list[list[EvalCompletion]]:
        """Draws in phases; a phase holds all completions that are not finished."""
        assert self.forcer is not None
        samples = [(request, sample) for request in requests for sample in request.samples]
        drafts = [self.forcer.first() for _ in samples]
        for phase in count():
            drafts = [
                self._within_context(request, draft)
                for (request, _), draft in zip(samples, drafts, strict=True)
            ]
            pending = [i for i, draft in enumerate(drafts) if draft.room]
            if not pending:
                break
            prompts: dict[tuple[int, ...], list[int]] = {}
            for i in pending:
                prompt = (*samples[i][0].prompt_ids, *drafts[i].ids)
                prompts.setdefault(prompt, []).append(i)
            room = max(drafts[i].room for i in pending)
            completions = self.engine.generate(
                list(prompts),
                self.config.model_copy(update={"max_tokens": room}),
                [[self._seed(*samples[i], phase) for i in group] for group in prompts.values()],
                self.stop_ids,
                _standing(progress, len(drafts) - len(pending), len(drafts)),
            )
            for group, drawn in zip(prompts.values(), completions, strict=True):
                for i, one in zip(group, drawn, strict=True):
                    drafts[i] = self.forcer.after(drafts[i], one.ids, one.finish_reason)
        written = iter(EvalCompletion(draft.ids, draft.finish_reason) for draft in drafts)
        return [[next(written) for _ in request.samples] for request in requests]

    def _within_context(self, request: SampleRequest, draft: Draft) -> Draft:
        """A draft that fills the model's context, forced tokens included, ends there."""
        left = self.engine.context - len(request.prompt_ids)
        if not draft.room or len(draft.ids) < left:
            return draft
        return replace(draft, ids=draft.ids[:left], room=0, finish_reason="length")

    def _seed(self, request: SampleRequest, sample: int, phase: int = 0) -> int:
        """The first phase has the seed that a completion without phases has."""
        from rlt_core.generation import sample_seed

        key = f"{self.key}/phase-{phase}" if phase else self.key
        return sample_seed(key, request.question["question_id"], sample)


def _standing(progress: Progress, finished: int, total: int) -> Progress:
    """Progress stands while a phase draws: how many phases will follow is not known."""

    def report(_done: int, _total: int, metrics: Metrics) -> None:
        progress.report(finished, total, metrics)

    return replace(progress, report=report)
