"""What long work says to, and hears from, whoever started it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlt_core.errors import Stopped

Metrics = Mapping[str, float]
PART = 1000
"""Units that a part of the work counts as."""


def _silent(done: int, total: int, metrics: Metrics) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class Control:
    """Progress out, the wish to stop in. The default is silent and never stops."""

    progress: Callable[[int, int, Metrics], None] = _silent
    """Called with (units done, units in all, current metrics)."""
    should_stop: Callable[[], bool] = lambda: False
    """True once somebody wants the work to checkpoint and end."""

    def check(self) -> None:
        """Raise `Stopped` if the work should end; call it where nothing would be lost."""
        if self.should_stop():
            raise Stopped("stopped on request")

    def part(self, index: int, parts: int) -> Control:
        """For one of several equal parts of the work: its progress counts as that share."""

        def progress(done: int, total: int, metrics: Metrics) -> None:
            share = PART * done // total if total else 0
            self.progress(index * PART + share, parts * PART, metrics)

        return Control(progress, self.should_stop)
