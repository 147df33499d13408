"""Callbacks for long-running work: report progress, check for cancellation."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from pydantic import BaseModel

from rlt_core.errors import Stopped

Metrics = Mapping[str, float]
T = TypeVar("T")
STEPS = 5
"""Steps whose mean duration is expected of the next one."""
CURVE_POINTS = 40
PART = 1000
"""Units that a part of the work counts as."""


def _silent(done: int, total: int, metrics: Metrics) -> None:
    pass


@dataclass(frozen=True)
class Progress:
    """The callbacks of one piece of work. The defaults report nothing and never stop it."""

    report: Callable[[int, int, Metrics], None] = _silent
    """Called with (units done, units in all, current metrics)."""
    should_stop: Callable[[], bool] = lambda: False
    """True once the work was asked to checkpoint and end."""

    def check(self) -> None:
        """Raise `Stopped` if a stop was requested; call it where nothing would be lost."""
        if self.should_stop():
            raise Stopped("stopped on request")

    def over(self, items: Iterable[T], total: int, every: int = 1) -> Iterator[T]:
        """Yield the items; before each `every`-th check for a stop request and report."""
        for done, item in enumerate(items):
            if done % every == 0:
                self.check()
                self.report(done, max(done, total), {})
            yield item

    def part(self, index: int, parts: int) -> Progress:
        """The callbacks of one of several equal parts of the work."""

        def report(done: int, total: int, metrics: Metrics) -> None:
            share = PART * done // total if total else 0
            self.report(index * PART + share, parts * PART, metrics)

        return Progress(report, self.should_stop)


class Note(BaseModel):
    """The progress of a piece of work, told with its lease."""

    done: int = 0
    total: int | None = None
    share: float = 0.0
    """How much is done, from 0 to 1."""
    left_s: float | None = None
    """Seconds that it should still take."""
    metrics: dict[str, float] = {}
    curve: list[float] = []
    """The reward, or the loss, so far."""


@dataclass
class Work:
    """A piece of work under way, as its reports show it."""

    started: float = field(default_factory=lambda: time.monotonic())
    done: int = 0
    total: int | None = None
    """None: it has not begun; 0: it waits for another run."""
    metrics: Metrics = field(default_factory=dict)
    said: float = field(default_factory=lambda: time.monotonic())
    """When a line about it was printed."""
    curve: list[float] = field(default_factory=list)
    """The reward, or the loss, at each report that has one."""
    _ends: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS + 1))

    def reached(self, done: int, total: int, metrics: Metrics) -> None:
        """Take note of a report."""
        self.done, self.total, self.metrics = done, total, metrics
        if total:
            self._ends.append(time.monotonic())
        value = metrics.get("reward", metrics.get("loss"))
        if value is not None and math.isfinite(value):
            self.curve.append(value)

    @property
    def share(self) -> float:
        """How much is done, from 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    def step(self) -> tuple[float | None, float]:
        """Seconds that a step takes, by the latest ones, and those that the current one should
        still take; before the first has ended None, and the seconds since the start."""
        now, ends = time.monotonic(), self._ends
        if not ends:
            return None, now - self.started
        whole = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else ends[0] - self.started
        return whole, max(0.0, whole - (now - ends[-1]))

    def note(self) -> Note:
        """What others may see of it."""
        step, left = self.step()
        if self.total and step is not None:
            left += step * max(0, self.total - self.done - 1)
        return Note(
            done=self.done,
            total=self.total,
            share=self.share,
            left_s=left if self.total and step is not None else None,
            metrics={k: float(v) for k, v in self.metrics.items() if v is not None},
            curve=_thinned(self.curve),
        )


def _thinned(values: list[float]) -> list[float]:
    """Return at most `CURVE_POINTS` means of equal parts of the values."""
    parts = min(CURVE_POINTS, len(values))
    ends = [len(values) * i // parts for i in range(parts + 1)] if parts else []
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(ends)]
