"""A model's completions of evaluation questions, in shards that commit on their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from rlt_core.config import Sampling, StageResources
from rlt_core.control import Control, Metrics
from rlt_core.evaluation.budget import Forcer
from rlt_core.schemas import TOKENS
from rlt_core.store import Workspace

if TYPE_CHECKING:
    from rlt_core.generation import Engine

GROUP = "shards"
_COLUMNS = pa.schema(
    {
        "task": pa.string(),
        "question_id": pa.string(),
        "sample": pa.int32(),
        "ids": TOKENS,
        "finish_reason": pa.string(),
    }
)


@dataclass(frozen=True)
class Request:
    """One question to complete."""

    task: str
    question_id: str
    prompt_ids: list[int]


@dataclass(frozen=True)
class Written:
    """One completion."""

    ids: list[int]
    finish_reason: str


Completed = dict[tuple[str, str], list[Written]]
"""(task, question_id) -> its n completions, by sample."""


@dataclass(frozen=True)
class Completer:
    """Completes requests with an engine that is opened only if something is missing."""

    open_engine: Callable[[], Engine]
    sampling: Sampling
    stop_ids: Sequence[int]
    key: str
    """Of the evaluation; sampling seeds derive from it."""
    work: Workspace
    resources: StageResources
    control: Control
    forcer: Forcer | None = None
    """Forces the length of thinking; empty: completions are left as they are drawn."""

    def complete(self, requests: Sequence[Request]) -> Completed:
        """All completions. What earlier attempts committed is read, not generated again, whatever
        the size of their shards was."""
        done = self._committed()
        missing = [r for r in requests if (r.task, r.question_id) not in done]
        if missing:
            with self.open_engine() as engine:
                done |= self._complete(engine, missing, len(requests))
        self.control.progress(len(requests), len(requests), {})
        return done

    def _complete(self, engine: Engine, missing: Sequence[Request], total: int) -> Completed:
        completed: Completed = {}
        first = len(self.work.parts(GROUP))
        for number, shard in enumerate(_shards(missing, self.resources.shard_questions), first):
            self.control.check()
            before = total - len(missing) + len(completed)
            shard_completed = self._generate(engine, shard, self._progress(before, total))
            folder = self.work.begin(GROUP, f"{number:06d}")
            _write(folder / "completions.parquet", shard_completed)
            self.work.commit(GROUP, f"{number:06d}")
            completed |= shard_completed
        return completed

    def _progress(self, before: int, total: int) -> Control:
        """Counts questions where the engine counts completions of a shard."""

        def progress(completions: int, _: int, metrics: Metrics) -> None:
            self.control.progress(before + completions // self.sampling.n, total, metrics)

        return replace(self.control, progress=progress)

    def _generate(self, engine: Engine, shard: Sequence[Request], control: Control) -> Completed:
        if self.forcer:
            return self._force(self.forcer, engine, shard, control)
        samples = range(self.sampling.n)
        completions = engine.generate(
            [request.prompt_ids for request in shard],
            self.sampling,
            [[self._seed(request, sample) for sample in samples] for request in shard],
            self.stop_ids,
            control,
        )
        return {
            (request.task, request.question_id): [
                Written(list(one.ids), one.finish_reason) for one in group
            ]
            for request, group in zip(shard, completions, strict=True)
        }

    def _force(
        self, forcer: Forcer, engine: Engine, shard: Sequence[Request], control: Control
    ) -> Completed:
        """Draws in phases; a phase holds all completions that are not finished."""
        samples = [(request, sample) for request in shard for sample in range(self.sampling.n)]
        drafts = [forcer.first() for _ in samples]
        for phase in count():
            pending = [i for i, draft in enumerate(drafts) if draft.room]
            if not pending:
                break
            prompts: dict[tuple[int, ...], list[int]] = {}
            for i in pending:
                prompt = (*samples[i][0].prompt_ids, *drafts[i].ids)
                prompts.setdefault(prompt, []).append(i)
            room = max(drafts[i].room for i in pending)
            completions = engine.generate(
                list(prompts),
                self.sampling.model_copy(update={"max_tokens": room}),
                [[self._seed(*samples[i], phase) for i in group] for group in prompts.values()],
                self.stop_ids,
                _standing(control, len(drafts) - len(pending), len(drafts)),
            )
            for group, drawn in zip(prompts.values(), completions, strict=True):
                for i, one in zip(group, drawn, strict=True):
                    drafts[i] = forcer.after(drafts[i], one.ids, one.finish_reason)
        completed: Completed = {}
        for (request, _), draft in zip(samples, drafts, strict=True):
            written = completed.setdefault((request.task, request.question_id), [])
            written.append(Written(draft.ids, draft.finish_reason))
        return completed

    def _seed(self, request: Request, sample: int, phase: int = 0) -> int:
        """The first phase has the seed that a completion without phases has."""
        from rlt_core.generation import sample_seed

        key = f"{self.key}/phase-{phase}" if phase else self.key
        return sample_seed(key, request.question_id, sample)

    def _committed(self) -> Completed:
        done: Completed = {}
        for name in self.work.parts(GROUP):
            table = pq.read_table(
                self.work.path(GROUP, name) / "completions.parquet", schema=_COLUMNS
            )
            for row in table.to_pylist():
                written = done.setdefault((row["task"], row["question_id"]), [])
                assert len(written) == row["sample"]
                written.append(Written(row["ids"], row["finish_reason"]))
        return done


def _standing(control: Control, finished: int, total: int) -> Control:
    """Progress stands while a phase draws: how many phases will follow is not known."""

    def progress(_done: int, _total: int, metrics: Metrics) -> None:
        control.progress(finished, total, metrics)

    return replace(control, progress=progress)


def _shards(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    for start in range(0, len(requests), size):
        yield requests[start : start + size]


def _write(path: Path, completed: Completed) -> None:
    rows = [
        {
            "task": task,
            "question_id": question_id,
            "sample": sample,
            "ids": one.ids,
            "finish_reason": one.finish_reason,
        }
        for (task, question_id), group in completed.items()
        for sample, one in enumerate(group)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=_COLUMNS), path, compression="zstd")
