"""`rlt status --watch`, and what a run tells for it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.text import Text

from flows.cli.progress import LINE_EVERY_S
from flows.cli.terminal import Console
from rlt_core.errors import UserError
from rlt_core.progress import Note
from rlt_core.report.terminal import alarms_of, duration, facts
from rlt_core.store import Lease, Store

RUN = "run-"
"""How the leases of whole runs begin."""
EVERY_S, EVERY_S_ON_S3 = 1.0, 5.0
"""Seconds between two looks at the store."""
STARTS_IN_S = 10.0
"""Seconds to wait for a run, or for the next node of a run elsewhere, to show."""
ENDED = "runs/ended"
"""Folder of the store with the exit statuses of the latest runs."""
KEPT_ENDS = 32
BARS = "▁▂▃▄▅▆▇█"
SHOWN_FACTS = 2
Leases = Mapping[str, dict[str, Any]]
ENDS = {None: "was killed", 0: "is done", 130: "was stopped; the same command continues it"}


# ---------------------------------------------------------------- in the run
@contextmanager
def announced(store: Store, name: str, note: Callable[[], Note]) -> Iterator[list[int]]:
    """Hold a lease while a run works; leave its exit status in the store: the last number of the
    list that this yields."""
    files, key = store.files, f"{RUN}{int(time.time()):x}-{uuid.uuid4().hex[:8]}"
    status = [1]
    with Lease(files, key, name, note=note):
        try:
            yield status
        except SystemExit as stopped:
            status.append(stopped.code if isinstance(stopped.code, int) else 1)
            raise
        finally:
            with suppress(UserError, OSError):
                files.write(f"{ENDED}/{key}", str(status[-1]).encode())
                for old in sorted(files.names(ENDED))[:-KEPT_ENDS]:
                    files.remove(f"{ENDED}/{old}")


# ---------------------------------------------------------------- watching
def watch(store: Store, console: Console) -> int:
    """Show what runs until every run has ended; return the largest exit status."""
    runs: dict[str, str] = {}
    said: dict[str, float] = {}
    started = time.monotonic()
    live = Live(console=console, auto_refresh=False, transient=True)
    with live if console.is_terminal else nullcontext():
        while True:
            leases: Leases = store.files.patiently(store.working)
            running = {key: lease["name"] for key, lease in leases.items() if key.startswith(RUN)}
            runs |= running
            now = time.monotonic()
            if not leases and (runs or now - started > STARTS_IN_S):
                break
            ordered = sorted(leases.items(), key=lambda one: (one[0] not in runs, one[1]["name"]))
            width = max((len(lease["name"]) for _, lease in ordered), default=0)
            if console.is_terminal:
                lines = [Text(line_of(lease, width), no_wrap=True) for _, lease in ordered]
                live.update(Group(*lines[: console.height - 1]), refresh=True)
            else:
                for key, lease in ordered:
                    if now - said.get(key, -LINE_EVERY_S) >= LINE_EVERY_S:
                        said[key] = now
                        console.print(line_of(lease, width), soft_wrap=True)
            time.sleep(EVERY_S if store.files.is_local else EVERY_S_ON_S3)
    worst = 0
    for key, name in runs.items():
        status = None
        with suppress(UserError, ValueError):  # of one that was killed there is none
            status = int(store.files.read(f"{ENDED}/{key}") or "")
        how = ENDS.get(status, f"failed (exit status {status})")
        console.print(f"{name} {how}", soft_wrap=True)
        worst = max(worst, 1 if status is None else status)
    if not runs:
        console.print(f"nothing runs in {store}", soft_wrap=True)
    return worst


def line_of(lease: Mapping[str, Any], width: int = 0) -> str:
    """What a lease says about its work, in a line; `width`: of the name."""
    name = f"{lease['name'] or 'unknown work':<{width}}"
    note = Note.model_validate(lease.get("note") or {})
    if not note.total:
        return f"{name}  {'waits for another run' if note.total == 0 else 'starts'}"
    first, *more = [*facts(note.metrics)[:SHOWN_FACTS], ""]
    left = "" if note.left_s is None else f"about {duration(note.left_s)} left"
    told = [f"{note.share:>4.0%}", f"{note.done}/{note.total}", first, sparkline(note.curve), left]
    return "  ".join([name, *filter(None, [*told, *more, alarms_of(note.metrics)])])


def sparkline(values: Sequence[float]) -> str:
    """Return a bar for each value between the smallest and the largest; the first of equal ones
    for all."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    step = (high - low) / (len(BARS) - 1) or 1.0
    return "".join(BARS[round((value - low) / step)] for value in values)
