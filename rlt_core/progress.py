"""Callbacks for long-running work: report progress, check for cancellation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from rlt_core.errors import Stopped

Metrics = Mapping[str, float]
T = TypeVar("T")
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
