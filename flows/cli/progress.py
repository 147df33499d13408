"""Progress of long work: a live display on a terminal, lines elsewhere."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.cli.terminal import Console, some
from rlt_core.progress import Metrics, Note, Work
from rlt_core.report.terminal import alarms_of, duration, facts, scores_of
from rlt_core.store import Manifest, Store
from tasks.child_process import GRACE_S

LINE_EVERY_S = 15.0
"""Seconds between two lines about one piece of work where there is no terminal."""
REMAINING_FROM = 0.03
"""Share of a run that is done before its remaining time is shown."""
SHOWN_FACTS = 3


class Display:
    """The pieces of work (nodes of a run) under way with a bar for all of it, and a line for each
    that has ended. Its methods may be called from threads."""

    def __init__(
        self,
        total: int,
        console: Console | None = None,
        *,
        weights: Mapping[str, float] | None = None,
        store: Store | None = None,
    ) -> None:
        """`weights`: how long each piece takes in comparison; by default all take the same.
        `store`: where the scores of finished evaluations are."""
        self.console = console or Console()
        self._total, self._store = total, store
        self._weights = dict(weights or {})
        self._width = max(map(len, self._weights), default=0)
        self._digits = 2 * len(str(total)) + 3
        self._pieces: dict[str, Work] = {}
        self._started = time.monotonic()
        self._ended, self._ended_weight = 0, 0.0
        self._stopping = False
        self._failed: list[str] = []
        self._not_run: list[str] = []
        self._lock = threading.RLock()
        self._is_live = self.console.is_terminal
        self._live = Live(get_renderable=self._render, console=self.console, transient=True)

    def __enter__(self) -> Display:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._live.stop()
        if self._stopping:
            self.say(f"{self._ended} of {self._total} nodes are done")
        elif self._not_run:
            need = f" that need {', '.join(self._failed)}" if self._failed else ""
            self.say(f"not run  {len(self._not_run)} nodes{need}: {some(self._not_run)}")

    # ------------------------------------------------------------ what is shown
    def say(self, line: str) -> None:
        """Print a line that stays. If standard output cannot be written, use stderr from now on."""
        try:
            self.console.print(line, soft_wrap=True)
        except OSError as error:
            self.console = Console(stderr=True)
            self.say(f"standard output cannot be written, continuing on stderr: {error}\n{line}")

    def _line(self, number: str, name: str, middle: str, found: Sequence[str]) -> str:
        """One line; on a terminal without the facts for which it has no room."""
        line = f"{number:>{self._digits}}  {name:<{self._width}}  {middle:>6}"
        for fact in found[:SHOWN_FACTS]:
            if self._is_live and len(line) + 2 + len(fact) > self.console.width:
                break
            line += f"  {fact}"
        return line.rstrip()

    def _piece(self, name: str, piece: Work) -> str:
        if self._stopping:
            step, left = piece.step()
            said = f"no step has ended in {duration(left)}"
            if step is not None:
                more = f"about {duration(left)} left" if left else "the current one takes longer"
                said = f"a step takes {duration(step)}, {more}"
            return self._line("", name, "", [said])
        if not piece.total:
            waits = ["waiting for another run"] if piece.total == 0 else []
            return self._line("", name, "", waits)
        found = [*facts(piece.metrics)[: SHOWN_FACTS - 1], alarms_of(piece.metrics)]
        return self._line("", name, f"{piece.share:.0%}", found)

    def _render(self) -> RenderableType:
        """The pieces under way, as many as the terminal has lines for, and the bar."""
        pieces = list(self._pieces.items())
        lines = [Text(self._piece(*each), no_wrap=True, overflow="ellipsis") for each in pieces]
        room = max(1, self.console.height - 4)
        if len(lines) > room:
            lines[room:] = [Text(f"{'':>{self._digits}}  … and {len(lines) - room} more")]
        note, elapsed = self.note(), time.monotonic() - self._started
        left = f", about {duration(note.left_s)} left" if note.left_s is not None else ""
        bar = Table.grid(padding=(0, 2))
        bar.width = max(1, self.console.width - 3)  # leaves room for the terminal's ^C
        for ratio in (None, 1, None):
            bar.add_column(ratio=ratio, no_wrap=True)
        number = f"{f'{self._ended}/{self._total}':>{self._digits}}"
        bar.add_row(number, ProgressBar(1.0, note.share), f"{duration(elapsed)}{left}")
        return Group(*lines, bar)

    def note(self) -> Note:
        """What others may see of the run."""
        with self._lock:
            every = sum(self._weights.values()) if self._weights else self._total
            done = self._ended_weight + sum(
                self._weights.get(name, 1.0) * piece.share for name, piece in self._pieces.items()
            )
            share = min(1.0, done / every) if every else 1.0
            elapsed = time.monotonic() - self._started
            known = REMAINING_FROM <= share < 1 and not self._stopping
            left = elapsed / share - elapsed if known else None
            return Note(done=self._ended, total=self._total, share=share, left_s=left)

    def stopping(self, grace_s: float) -> None:
        """Say what a stop request does, and how long the current steps should still take."""
        with self._lock:
            self._stopping = True
            if grace_s == 0:
                self.say("killed; the same command continues from the last checkpoints")
            elif math.isinf(grace_s):
                self.say("stopping after the current steps; Ctrl-C again kills them")
            else:
                self.say(f"stopping: {grace_s:.0f} s to save checkpoints")
            if grace_s and not self._is_live:
                for name, piece in self._pieces.items():
                    self.say(self._piece(name, piece))

    # ------------------------------------------------------------ pieces
    def begin(self, name: str) -> None:
        with self._lock:
            self._pieces[name] = Work()

    def end(self, name: str, line: str, middle: str = "", found: Sequence[str] = ()) -> None:
        """Replace a piece by a line with the number of ended ones: `3/12  …`."""
        with self._lock:
            self._pieces.pop(name, None)
            self._ended += 1
            self._ended_weight += self._weights.get(name, 1.0)
            self.say(self._line(f"{self._ended}/{self._total}", line, middle, found))

    # The methods below are those of `ProgressReporter`.
    def started(self, name: str) -> None:
        self.begin(name)
        if not self._is_live:
            self.say(f"{'':>{self._digits}}  {name} …")

    def progress(self, name: str, done: int, total: int, metrics: Metrics) -> None:
        with self._lock:
            piece, now = self._pieces[name], time.monotonic()
            piece.reached(done, total, metrics)
            if not self._is_live and total and now - piece.said > LINE_EVERY_S:
                piece.said = now
                self.say(self._piece(name, piece))

    def line(self, name: str, text: str) -> None:
        """Not shown: a node's output is in its log file."""

    def finished(self, name: str, manifest: Manifest) -> None:
        found = facts(manifest.metrics, scores_of(manifest, self._store))
        with self._lock:
            self.end(name, name, duration(manifest.seconds), found)
            if alarm := alarms_of(manifest.metrics):
                self.say(f"{'':>{self._digits}}  {alarm}")

    def failed(self, name: str, how: str, message: str) -> None:
        """Show that a node failed or was stopped. Nodes that lack its output, or had not begun,
        are one line at the end, so that they do not hide the cause."""
        with self._lock:
            has_begun = self._pieces.pop(name, None)
            if how == "not run" or (how == "stopped" and not has_begun):
                self._not_run.append(name)
            else:
                self._failed.append(name)
                said = message.removeprefix(f"{name}: ")
                self.say(f"{how:>7}  {name}: {said}")


@contextmanager
def progress_bar(name: str, quiet: bool = False) -> Iterator[Callable[[int, int, Metrics], None]]:
    """Show the progress of one piece of work on stderr; yields the function that reports it."""
    with Display(1, Console(stderr=True, quiet=quiet)) as display:
        display.begin(name)
        yield partial(display.progress, name)


@contextmanager
def stop_requests(stop: Callable[[float], None]) -> Iterator[None]:
    """Call `stop` with the seconds that work has to end: unlimited at the first Ctrl-C, 0 at the
    second, `GRACE_S` at SIGTERM. In a thread: a handler may interrupt code that holds a lock.
    """
    requests: SimpleQueue[float | None] = SimpleQueue()
    pressed = iter((math.inf,))
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: requests.put(next(pressed, 0.0))),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: requests.put(GRACE_S)),
    }

    def listen() -> None:
        for grace_s in iter(requests.get, None):
            stop(grace_s)

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield
    finally:
        requests.put(None)
        for number, handler in before.items():
            signal.signal(number, handler)
