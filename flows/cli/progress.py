"""Where tables are printed; what a run shows while it works: live bars on a terminal, lines
elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from rlt_core.progress import Metrics
from rlt_core.store import Manifest

LINE_EVERY_S = 15.0
"""Seconds between two lines on one node where there is no terminal."""
SHOWN_METRICS = 4
UNLIMITED = 100_000
"""Characters a line where no terminal bounds it."""


def table_console(file: TextIO | None = None) -> Console:
    """As wide as the terminal; of any width in a file (default: standard output) or pipe, where
    nothing is to be cut."""
    file = file or sys.stdout
    return Console(file=file, width=None if file.isatty() else UNLIMITED, highlight=False)


def print_whole(console: Console, table: Table) -> None:
    """A table whose names and keys are never cut: a narrower terminal breaks its lines."""
    options = console.options.update(max_width=UNLIMITED)
    table.width = Measurement.get(console, options, table).maximum
    console.print(table, soft_wrap=True)


def _numbers(metrics: Metrics) -> str:
    shown = list(metrics.items())[:SHOWN_METRICS]
    return "  ".join(f"{name} {value:.4g}" for name, value in shown)


class Display:
    """Progress of the nodes of one run; its methods may be called from threads."""

    def __init__(self, total: int, hits: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self._live = self.console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[metrics]}"),
            console=self.console,
            transient=True,
        )
        self._rows: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        self._lock = threading.Lock()
        self._done, self._total = hits, total
        self._lacking: list[str] = []
        self._not_run: list[str] = []

    def __enter__(self) -> Display:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._bars.stop()
        if self._not_run:
            self.say(
                f"not run  {len(self._not_run)} nodes, for want of {', '.join(self._lacking)}: "
                f"{', '.join(self._not_run)}"
            )

    def say(self, line: str) -> None:
        """A line that stays; no markup. Work goes on where the output cannot be written."""
        try:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        except OSError as error:
            self.console = Console(stderr=True)
            self.say(f"standard output cannot be written, which goes on here: {error}\n{line}")

    def started(self, name: str) -> None:
        """A node has begun."""
        with self._lock:
            self._said[name] = time.monotonic()
            if self._live:
                self._rows[name] = self._bars.add_task(name, total=None, metrics="")
            else:
                self.say(f"         {name} …")

    def progress(self, name: str, done: int, total: int, metrics: Metrics) -> None:
        """A node has done so much."""
        with self._lock:
            if self._live:
                self._bars.update(
                    self._rows[name],
                    completed=done,
                    total=total or None,
                    metrics=_numbers(metrics) if total else "waiting for another run",
                )
            elif total and time.monotonic() - self._said[name] > LINE_EVERY_S:
                self._said[name] = time.monotonic()
                self.say(f"         {name} {100 * done / total:.0f}%  {_numbers(metrics)}")

    def line(self, name: str, text: str) -> None:
        """Not shown: a terminal shows progress, and the line stands in the node's log file."""

    def _ended(self, name: str) -> None:
        if self._live and name in self._rows:
            self._bars.remove_task(self._rows.pop(name))

    def finished(self, name: str, manifest: Manifest) -> None:
        """A node is committed."""
        with self._lock:
            self._ended(name)
            self._done += 1
            count = f"{self._done}/{self._total}"
            self.say(
                f"{count:>7}  {name}  {manifest.ref.key}  {manifest.seconds:.1f} s  "
                f"{_numbers(manifest.metrics)}"
            )

    def failed(self, name: str, how: str, message: str) -> None:
        """A node failed, was stopped or could not start; those that lack their inputs are told at
        the end, in one line, lest they hide why."""
        with self._lock:
            self._ended(name)
            if how == "not run":
                self._not_run.append(name)
            else:
                self._lacking.append(name)
                self.say(f"{how:>7}  {name}: {message}")
