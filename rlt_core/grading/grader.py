"""The side of grading that cannot hang: it owns a worker process and kills it when it must."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from rlt_core.grading.types import Grade, GradeItem

_START_TIMEOUT_S = 120.0
"""For starting Python and importing a grader's library; a busy machine is no hanging item."""


class _Failed(Exception):
    """The worker hung, died or raised on one request."""


class _Worker:
    """One `python -m rlt_core.grading.worker`, spoken to one request at a time."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        command = [sys.executable, "-P", "-m", "rlt_core.grading.worker", str(self.owner)]
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        assert self._process.stdin and self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._prepared: set[str] = set()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def prepare(self, grader: str) -> None:
        """Import what a grader needs, outside any item's time."""
        if grader in self._prepared:
            return
        try:
            self.ask("prepare", grader, _START_TIMEOUT_S)
        except _Failed as error:
            raise RuntimeError(f"the grading worker did not start: {error}") from error
        self._prepared.add(grader)

    def ask(self, operation: str, value: Any, timeout_s: float) -> Any:
        """Send one request and wait for its reply. Raises `_Failed`."""
        try:
            self._stdin.write(json.dumps([operation, value]).encode() + b"\n")
            self._stdin.flush()
            reply = json.loads(self._line(time.monotonic() + timeout_s))
        except OSError as error:
            raise _Failed(f"the worker died: {error}") from error
        if "error" in reply:
            raise _Failed(reply["error"])
        return reply["value"]

    def _line(self, deadline: float) -> bytes:
        chunks: list[bytes] = []
        while not chunks or not chunks[-1].endswith(b"\n"):
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                raise _Failed("timed out")
            chunk = os.read(self._stdout.fileno(), 1 << 16)
            if not chunk:
                raise _Failed("the worker died")
            chunks.append(chunk)
        return b"".join(chunks)

    def close(self) -> None:
        """Kill the worker (only in the process that started it) and free its pipes."""
        self._selector.close()
        if self.owner == os.getpid():
            self._process.kill()
            self._process.wait()
        for pipe in (self._stdin, self._stdout):
            try:
                pipe.close()
            except BrokenPipeError:  # a request that the dead worker never read
                continue


class Grader:
    """Grades in a worker process that lives across calls; use as a context manager or `close`.

    An item that takes longer than `timeout_s` costs the worker its life and is `grader_failed`; a
    new worker goes on with the rest.
    """

    def __init__(self, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._worker: _Worker | None = None

    def __enter__(self) -> Grader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker. The grader may be used again."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def grade_many(self, items: Sequence[GradeItem]) -> list[Grade]:
        """One grade an item, in order. Raises RuntimeError only if no worker can be started."""
        return [self._grade(item) for item in items]

    def self_check(self, questions: Sequence[Mapping[str, Any]]) -> list[int]:
        r"""Positions of the questions (rows with answer, grader and metadata) whose right answer is
        not graded correct, as \boxed{…} or as `Answer: …`: nothing can be graded with it.

        Questions without a grader, or without an answer where it needs one, are not among them.
        """
        failing = []
        for place, row in enumerate(questions):
            grader = row["grader"]
            if grader == "none" or (row["answer"] is None and grader != "countdown"):
                continue
            item = GradeItem(None, row["answer"], grader, row["metadata"])
            passed, failed = self._ask(grader, "check", asdict(item))
            if failed or not passed:
                failing.append(place)
        return failing

    def _grade(self, item: GradeItem) -> Grade:
        value, failed = self._ask(item.grader, "grade", asdict(item))
        return Grade("grader_failed") if failed else Grade(**value)

    def _ask(self, grader: str, operation: str, value: Any) -> tuple[Any, bool]:
        """The reply to a request, and whether there was none."""
        worker = self._ready(grader)
        try:
            return worker.ask(operation, value, self._timeout_s), False
        except _Failed:
            self.close()
            return None, True

    def _ready(self, grader: str) -> _Worker:
        worker = self._worker
        if worker is None or worker.owner != os.getpid() or not worker.alive:
            self.close()
            worker = self._worker = _Worker()
        worker.prepare(grader)
        return worker
