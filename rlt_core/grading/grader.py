"""Grading in worker processes: a verifier can hang or die on what a model wrote, and a process can
be killed. Nothing is graded in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from rlt_core.grading.grade import Grade, GradeItem, has_answer

START_TIMEOUT_S = 120.0
"""Time to start Python and import a grader's library; a busy machine is not a hanging item."""
HELD_UP_S = 0.5
"""After so long at one item, another worker is started for the rest."""
POLL_S = 0.1
MAX_WORKERS = 8
"""A worker takes about 200 MB."""


class _Worker:
    """A `python -m rlt_core.grading.worker`, which gets one request at a time."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        fd = theirs.fileno()
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rlt_core.grading.worker", str(fd), str(os.getpid())],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=[fd], env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )  # fmt: skip
        theirs.close()
        self.is_new, self.is_busy = True, False
        self.place = 0
        """Place of its request among all."""
        self.begun: float | None = None
        """When it began to grade; empty while it imports what the grader needs."""
        self.deadline = 0.0

    def send(self, place: int, request: Any) -> None:
        self.place, self.is_busy, self.begun = place, True, None
        self.deadline = time.monotonic() + START_TIMEOUT_S
        with suppress(OSError):  # it is dead, which `wait` reports
            self.connection.send_bytes(json.dumps(request).encode())

    @property
    def is_held_up(self) -> bool:
        return self.begun is not None and time.monotonic() > self.begun + HELD_UP_S

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


class Grader:
    """Grades in worker processes that live across calls; a context manager.

    An item that takes longer than `timeout_s`, or on which the worker dies, is `grader_failed`.
    There is one worker until an item holds it up, then more, at most `max_workers` (by default the
    machine's cores, but no more than MAX_WORKERS).
    """

    def __init__(self, timeout_s: float = 10.0, max_workers: int | None = None) -> None:
        self._timeout_s = timeout_s
        self._max_workers = max_workers or min(os.cpu_count() or 1, MAX_WORKERS)
        self._workers: list[_Worker] = []
        self._owner = os.getpid()

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers. The grader may be used again."""
        if self._owner == os.getpid():  # a fork leaves its parent's workers alone
            for worker in self._workers:
                worker.end()
        self._owner, self._workers = os.getpid(), []

    def grade_many(
        self, items: Sequence[GradeItem], check: Callable[[], None] = lambda: None
    ) -> list[Grade]:
        """Return one grade per item, in order. `check` is called between replies and may raise.

        Raises RuntimeError only if no worker can be started.
        """
        replies = self._ask([("grade", asdict(item)) for item in items], check)
        return [Grade("grader_failed") if reply is None else Grade(**reply) for reply in replies]

    def self_check(self, questions: Sequence[Mapping[str, Any]]) -> list[int]:
        r"""Return the places of the questions (rows with answer, grader and metadata) whose right
        answer is not graded correct, as \boxed{…} or as `Answer: …`: they cannot be graded.

        Questions without a grader, or without an answer where it needs one, are not among them.
        """
        items = {
            place: GradeItem(None, row["answer"], row["grader"], row["metadata"])
            for place, row in enumerate(questions)
            if has_answer(row)
        }
        replies = self._ask([("check", asdict(item)) for item in items.values()])
        return [place for place, passed in zip(items, replies, strict=True) if not passed]

    def _ask(self, requests: Sequence[Any], check: Callable[[], None] = lambda: None) -> list[Any]:
        """Return the reply to each request, None where the worker hung, died or raised."""
        if self._owner != os.getpid():
            self.close()
        replies: list[Any] = [None] * len(requests)
        waiting = deque(range(len(requests)))
        try:
            while True:
                check()
                while waiting and (worker := self._free_worker()):
                    place = waiting.popleft()
                    worker.send(place, requests[place])
                busy = {worker.connection: worker for worker in self._workers if worker.is_busy}
                if not busy:
                    return replies
                ready = wait(busy, POLL_S)
                for connection, worker in busy.items():
                    if connection in ready:
                        self._receive(worker, replies, waiting)
                    elif time.monotonic() > worker.deadline:
                        self._lose(worker, waiting)
        except BaseException:
            self.close()
            raise

    def _free_worker(self) -> _Worker | None:
        """Return an idle worker, a new one if all are held up and it may be started, else None."""
        free = next((worker for worker in self._workers if not worker.is_busy), None)
        may_grow = len(self._workers) < self._max_workers
        if free is None and may_grow and all(worker.is_held_up for worker in self._workers):
            free = _Worker()
            self._workers.append(free)
        return free

    def _receive(self, worker: _Worker, replies: list[Any], waiting: deque[int]) -> None:
        try:
            message = json.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            return self._lose(worker, waiting)
        if message == "begun":
            worker.begun = time.monotonic()
            worker.deadline = worker.begun + self._timeout_s
        elif worker.begun is None:
            raise RuntimeError(f"the grading worker did not start: {message['error']}")
        elif "error" in message:
            self._lose(worker, waiting)
        else:
            replies[worker.place] = message["value"]
            worker.is_busy, worker.is_new = False, False

    def _lose(self, worker: _Worker, waiting: deque[int]) -> None:
        """End a worker that hung, died or raised. If it had not begun, its request goes on."""
        self._workers.remove(worker)
        worker.end()
        if worker.begun is None:
            if worker.is_new:
                raise RuntimeError("the grading worker did not start")
            waiting.appendleft(worker.place)
