"""Progress of long work: live bars on a terminal, lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from flows.cli.terminal import Console
from rlt_core.progress import Metrics
from rlt_core.store import Manifest

LINE_EVERY_S = 15.0
"""Seconds between two lines about one piece of work where there is no terminal."""
SHOWN_METRICS = 4


def _numbers(metrics: Metrics) -> str:
    shown = list(metrics.items())[:SHOWN_METRICS]
    return "  ".join(f"{name} {value:.4g}" for name, value in shown)


class Display:
    """Bars for the nodes (or other pieces of work) under way, a line for each that has ended.

    Its methods may be called from threads.
    """

    def __init__(self, total: int, hits: int = 0, console: Console | None = None) -> None:
        self.console = console or Console()
        self._live = self.console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[metrics]}", style="dim", markup=False),
            console=self.console,
            transient=True,
        )
        self._rows: dict[str, TaskID] = {}
        self._said_at: dict[str, float] = {}
        self._lock = threading.RLock()
        self._ended, self._total = hits, total
        self._failed: list[str] = []
        self._not_run: list[str] = []

    def __enter__(self) -> Display:
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bars.stop()
        if self._not_run:
            self.say(
                f"not run  {len(self._not_run)} nodes that need {', '.join(self._failed)}: "
                f"{', '.join(self._not_run)}"
            )

    def say(self, line: str) -> None:
        """Print a line that stays. If standard output cannot be written, use stderr from now on."""
        try:
            self.console.print(line, soft_wrap=True)
        except OSError as error:
            self.console = Console(stderr=True)
            self.say(f"standard output cannot be written, continuing on stderr: {error}\n{line}")

    def begin(self, name: str) -> None:
        """Show a bar, on a terminal."""
        with self._lock:
            self._said_at[name] = time.monotonic()
            if self._live:
                self._rows[name] = self._bars.add_task(name, total=None, metrics="")

    def end(self, name: str, result: str) -> None:
        """Replace the bar by a line with the number of ended pieces: `3/12  result`."""
        with self._lock:
            self._remove_bar(name)
            self._ended += 1
            self.say(f"{f'{self._ended}/{self._total}':>7}  {result}")

    def _remove_bar(self, name: str) -> None:
        if name in self._rows:
            self._bars.remove_task(self._rows.pop(name))

    # The methods below are those of `Reporter`.
    def started(self, name: str) -> None:
        """Show that a node has started."""
        self.begin(name)
        if not self._live:
            self.say(f"         {name} …")

    def progress(self, name: str, done: int, total: int, metrics: Metrics) -> None:
        """Show how much is done; `total` 0: it waits for another run."""
        with self._lock:
            if self._live:
                self._bars.update(
                    self._rows[name],
                    completed=done,
                    total=total or None,
                    metrics=_numbers(metrics) if total else "waiting for another run",
                )
            elif total and time.monotonic() - self._said_at[name] > LINE_EVERY_S:
                self._said_at[name] = time.monotonic()
                self.say(f"         {name} {100 * done / total:.0f}%  {_numbers(metrics)}")

    def line(self, name: str, text: str) -> None:
        """Not shown: a node's output is in its log file."""

    def finished(self, name: str, manifest: Manifest) -> None:
        """Show that a node is committed."""
        facts = f"{manifest.ref.key}  {manifest.seconds:.1f} s  {_numbers(manifest.metrics)}"
        self.end(name, f"{name}  {facts}")

    def failed(self, name: str, how: str, message: str) -> None:
        """Show that a node failed or was stopped. Nodes that lack its output are one line at the
        end, so that they do not hide the cause."""
        with self._lock:
            self._remove_bar(name)
            if how == "not run":
                self._not_run.append(name)
            else:
                self._failed.append(name)
                self.say(f"{how:>7}  {name}: {message}")


@contextmanager
def progress_bar(name: str, quiet: bool = False) -> Iterator[Callable[[int, int, Metrics], None]]:
    """Show the progress of one piece of work on stderr; yields the function that reports it."""
    with Display(1, console=Console(stderr=True, quiet=quiet)) as display:
        display.begin(name)
        yield partial(display.progress, name)
