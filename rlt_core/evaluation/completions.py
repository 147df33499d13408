"""A model's completions of evaluation questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

from rlt_core.config import EvaluationConfig
from rlt_core.evaluation.benchmarks import EvalTask
from rlt_core.evaluation.budget_forcing import Draft, Forcer
from rlt_core.progress import Metrics, Progress

if TYPE_CHECKING:
    from rlt_core.generation import Engine
    from rlt_core.prompts.renderer import Renderer

TOO_LONG = "too_long"
"""Finish reason where the prompt leaves no room in the model's context: nothing was asked."""


@dataclass(frozen=True)
class Request:
    """Some completions of one question."""

    task: str
    question: Mapping[str, Any]
    """A row of an `EvalTask`."""
    prompt_ids: list[int]
    samples: range
    """Which of the question's completions."""


@dataclass(frozen=True)
class Written:
    """One completion."""

    ids: list[int]
    finish_reason: str


def requests_of(
    tasks: Sequence[EvalTask], config: EvaluationConfig, renderer: Renderer
) -> list[Request]:
    """All that is asked, in the tasks' order. No request has more than `config.n` completions, so
    that requests are alike where a task has more of them, and any of them can share the work."""
    return [
        Request(task.name, question, prompt_ids, samples)
        for task in tasks
        for question in task.questions
        for prompt_ids in [renderer.student_prompt(question["question"])]
        for samples in _pieces(config.samples_of(task.name), config.n)
    ]


def _pieces(total: int, size: int) -> Iterator[range]:
    for start in range(0, total, size):
        yield range(start, min(start + size, total))


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

    def complete(self, requests: Sequence[Request], progress: Progress) -> list[list[Written]]:
        """The completions of each request. Progress counts completions. Raises Stopped."""
        fitting = [one for one in requests if len(one.prompt_ids) < self.engine.context]
        write = self._force if self.forcer else self._draw
        written = iter(write(fitting, progress) if fitting else [])
        nothing = Written([], TOO_LONG)
        return [
            next(written)
            if len(one.prompt_ids) < self.engine.context
            else [nothing for _ in one.samples]
            for one in requests
        ]

    def _draw(self, requests: Sequence[Request], progress: Progress) -> list[list[Written]]:
        completions = self.engine.generate(
            [request.prompt_ids for request in requests],
            self.config,
            [[self._seed(request, sample) for sample in request.samples] for request in requests],
            self.stop_ids,
            progress,
        )
        return [
            [Written(list(one.ids), one.finish_reason) for one in group] for group in completions
        ]

    def _force(self, requests: Sequence[Request], progress: Progress) -> list[list[Written]]:
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
        written = iter(Written(draft.ids, draft.finish_reason) for draft in drafts)
        return [[next(written) for _ in request.samples] for request in requests]

    def _within_context(self, request: Request, draft: Draft) -> Draft:
        """A draft that fills the model's context, forced tokens included, ends there."""
        left = self.engine.context - len(request.prompt_ids)
        if not draft.room or len(draft.ids) < left:
            return draft
        return replace(draft, ids=draft.ids[:left], room=0, finish_reason="length")

    def _seed(self, request: Request, sample: int, phase: int = 0) -> int:
        """The first phase has the seed that a completion without phases has."""
        from rlt_core.generation import sample_seed

        key = f"{self.key}/phase-{phase}" if phase else self.key
        return sample_seed(key, request.question["question_id"], sample)


def _standing(progress: Progress, finished: int, total: int) -> Progress:
    """Progress stands while a phase draws: how many phases will follow is not known."""

    def report(_done: int, _total: int, metrics: Metrics) -> None:
        progress.report(finished, total, metrics)

    return replace(progress, report=report)
