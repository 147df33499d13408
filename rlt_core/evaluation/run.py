"""Evaluate a model on tasks: completions, grades, scores."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rlt_core.config import EvaluationConfig, StageResources
from rlt_core.evaluation.benchmarks import EvalTask
from rlt_core.evaluation.budget_forcing import Draft, Forcer
from rlt_core.evaluation.scores import score_rows
from rlt_core.grading import GradeItem, Grader
from rlt_core.progress import Progress
from rlt_core.prompts.format import PromptFormat
from rlt_core.rows import write_tables

if TYPE_CHECKING:
    from rlt_core.generation import Engine
    from rlt_core.prompts.renderer import Renderer

Row = dict[str, Any]
log = logging.getLogger(__name__)

TOO_LONG = "too_long"
"""Finish reason if the prompt leaves no space in the model's context: nothing was generated."""


@dataclass(frozen=True)
class SampleRequest:
    """Some samples of one question."""

    task: str
    question: Mapping[str, Any]
    """A row of an `EvalTask`."""
    prompt_ids: list[int]
    samples: range
    """Numbers of the samples among those of the question."""


class ModelEvaluation:
    """The evaluation of one model; as a context manager it closes engine and grader.

    `complete` samples completions of some of the `requests` and may be called in several processes;
    `run` grades all of them and has lighteval score them. Sampling seeds derive from `key`.
    `label` is the model's name in eval_scores, by default its key. The engine is opened when the
    first request is completed.
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
        self.requests = self._requests()

    def _requests(self) -> list[SampleRequest]:
        """Return all requests, in the tasks' order. No request has more than `config.n` samples, so
        that they are alike even if a task has more, and any of them can share the work."""
        n = self._config.n
        return [
            SampleRequest(task.name, question, prompt_ids, samples[start : start + n])
            for task in self._tasks
            for question in task.questions
            for prompt_ids in [self._renderer.student_prompt(question["question"])]
            for samples in [range(self._config.samples_of(task.name))]
            for start in samples[::n]
        ]

    @cached_property
    def _engine(self) -> Engine:
        from rlt_core.generation import open_engine

        return open_engine(self._model, self._config.dtype, self._resources)

    def complete(self, requests: Sequence[SampleRequest], progress: Progress) -> list[Row]:
        """Return rows of eval_samples without grades, in the requests' order. Raises Stopped."""
        config, renderer = self._config, self._renderer
        forcer = Forcer(renderer, config.budget, config.max_tokens) if config.budget else None
        completer = Completer(self._engine, config, renderer.stop_ids, self._key, forcer)
        completed = completer.complete(requests, progress)
        return [
            {
                "task": request.task,
                **self._constant,
                "question_id": request.question["question_id"],
                "sample": sample,
                "question": request.question["question"],
                "completion": renderer.decode(one.ids),
                "extracted": None,
                "answer": request.question["answer"],
                "outcome": None,
                "finish_reason": one.finish_reason,
                "completion_tokens": len(one.ids),
            }
            for request, drafts in zip(requests, completed, strict=True)
            for sample, one in zip(request.samples, drafts, strict=True)
        ]

    def run(
        self, answer: Callable[[], Sequence[Row]], out: Path, progress: Progress
    ) -> dict[str, float]:
        """Grade and score the rows that `answer` returns for all requests; write both tables.

        Returns metrics: `{task}/{metric}`, a fraction; `{task}/ungraded`, completions left out;
        `{task}/grader_failed`, completions counted as wrong because the grader hung or died; and if
        there are any, `{task}/too_long`, completions whose prompt leaves no space in the context,
        and `{task}/ungradable`, questions left out because their right answer is not graded correct
        against itself. Raises Stopped.
        """
        from rlt_core.evaluation.adapter import run_tasks

        def score(samples: Sequence[Row]) -> list[Row]:
            return score_rows(samples, self._config.pass_at, self._label)

        ungradable = self._ungradable()
        samples = self._graded(answer(), ungradable, progress)
        scores, metrics = run_tasks(self._tasks, samples, score, out)
        write_tables(out, eval_samples=samples, eval_scores=scores)
        too_long = [row["task"] for row in samples if row["finish_reason"] == TOO_LONG]
        counts = {
            **Counter(f"{task}/{TOO_LONG}" for task in too_long),
            **Counter(f"{task}/ungradable" for task, _ in ungradable),
        }
        for row in scores:
            counts |= {f"{row['task']}/{name}": row[name] for name in ("ungraded", "grader_failed")}
        known = {name: value for name, value in metrics.items() if value == value}
        return known | {name: float(count) for name, count in counts.items()}

    def _ungradable(self) -> set[tuple[str, str]]:
        """Return task and id of the questions whose right answer is not graded correct against
        itself."""
        found = set()
        for task in self._tasks:
            failing = [task.questions[i] for i in self._grader.self_check(task.questions)]
            found |= {(task.name, question["question_id"]) for question in failing}
            if failing:
                log.warning(
                    "task %s: %d right answers are not graded correct against themselves, so their "
                    "questions are not graded (outcome ungradable); question %s: %r",
                    task.name, len(failing), failing[0]["question_id"], failing[0]["answer"],
                )  # fmt: skip
        return found

    def _graded(
        self, rows: Sequence[Row], ungradable: Collection[tuple[str, str]], progress: Progress
    ) -> list[Row]:
        items = []
        asked = [request for request in self.requests for _ in request.samples]
        for row, request in zip(rows, asked, strict=True):
            question = request.question
            none = (request.task, question["question_id"]) in ungradable
            items.append(
                GradeItem(
                    solution=given_solution(self._renderer, row["completion"]),
                    answer=question["answer"],
                    grader="none" if none else question["grader"],
                    metadata=question["metadata"],
                )
            )
        grades = self._grader.grade_many(items, progress.check)
        return [row | vars(grade) for row, grade in zip(rows, grades, strict=True)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._grader.close()
        if "_engine" in vars(self):
            self._engine.close()


def given_solution(renderer: Renderer, text: str) -> str | None:
    """Return the part of a completion to be graded: its solution block; what follows its thought,
    for a model that knows thoughts alone (R1, Qwen3); the whole text of a model that never saw the
    format; None if a thought or solution is not closed."""
    solution, format = renderer.split_answer(text).solution, renderer.format
    if solution is not None or format.solution_open in text:
        return solution
    answer = text.rpartition(format.thought_close)[2]
    return None if format.thought_open in answer else answer


# ---------------------------------------------------------------- completions
@dataclass(frozen=True)
class Completer:
    """Completes requests."""

    engine: Engine
    config: EvaluationConfig
    stop_ids: Sequence[int]
    key: str
    """Key of the evaluation; sampling seeds derive from it."""
    forcer: Forcer | None = None
    """Controls the length of thinking; None leaves completions as they are sampled."""

    def complete(self, requests: Sequence[SampleRequest], progress: Progress) -> list[list[Draft]]:
        """Return the finished completions of each request. Progress counts completions. Raises
        Stopped.

        Completions are sampled in phases, without a forcer in one; a phase has all that are not
        finished.
        """
        asked = [(request, sample) for request in requests for sample in request.samples]
        first = self.forcer.first() if self.forcer else Draft([], self.config.max_tokens)
        drafts = [self._within_context(request, first, TOO_LONG) for request, _ in asked]
        for phase in count():
            pending = [i for i, draft in enumerate(drafts) if draft.max_new_tokens]
            if not pending:
                break
            within = progress
            if self.forcer:  # how many phases will follow is not known
                progress.report(len(drafts) - len(pending), len(drafts), {})
                within = Progress(should_stop=progress.should_stop)
            prompts: dict[tuple[int, ...], list[int]] = {}
            for i in pending:
                prompt = (*asked[i][0].prompt_ids, *drafts[i].ids)
                prompts.setdefault(prompt, []).append(i)
            completions = self.engine.generate(
                list(prompts),
                self.config.model_copy(
                    update={"max_tokens": max(drafts[i].max_new_tokens for i in pending)}
                ),
                [[self._seed(*asked[i], phase) for i in group] for group in prompts.values()],
                self.stop_ids,
                within,
            )
            for group, sampled in zip(prompts.values(), completions, strict=True):
                for i, one in zip(group, sampled, strict=True):
                    draft = (
                        self.forcer.after(drafts[i], one.ids, one.finish_reason)
                        if self.forcer
                        else Draft(list(one.ids), finish_reason=one.finish_reason)
                    )
                    drafts[i] = self._within_context(asked[i][0], draft, "length")
        finished = iter(drafts)
        return [[next(finished) for _ in request.samples] for request in requests]

    def _within_context(self, request: SampleRequest, draft: Draft, reason: str) -> Draft:
        """End a draft that fills the model's context, forced tokens included."""
        left = max(0, self.engine.context - len(request.prompt_ids))
        if not draft.max_new_tokens or len(draft.ids) < left:
            return draft
        return replace(draft, ids=draft.ids[:left], max_new_tokens=0, finish_reason=reason)

    def _seed(self, request: SampleRequest, sample: int, phase: int) -> int:
        """Return a sample's seed; in the first phase the one without budget forcing."""
        from rlt_core.generation import sample_seed

        key = f"{self.key}/phase-{phase}" if phase else self.key
        return sample_seed(key, request.question["question_id"], sample)
