"""Artifacts on the pages of runs in the Prefect UI: plan, progress, tables, figures, report."""

import base64
import csv
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import artifacts, get_run_logger
from prefect.runtime import flow_run

from rlt_core.experiments import ALL, EXPERIMENTS
from rlt_core.graph import Planned
from rlt_core.progress import Metrics, Note
from rlt_core.store import Manifest, Store

UPDATE_EVERY_S = 2.0
"""Seconds between two updates of one progress bar."""
WAITING = "waiting for another run, which computes the same key or holds the GPUs"
SHOWN_METRICS = 6
FIGURE = re.compile(r"!\[([^\]]*)\]\(([^)]+\.svg)\)")


def _slug(name: str) -> str:
    """A name as an artifact key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _numbers(metrics: Metrics) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:SHOWN_METRICS])


@contextmanager
def _if_the_server_answers() -> Iterator[None]:
    """Show something, or go on without: a server that restarts ends no computation."""
    try:
        yield
    except httpx.HTTPError as error:
        get_run_logger().warning("not shown on the page: %s", error)


class _Page:
    """Shows outcomes of nodes."""

    def failed(self, name: str, how: str, message: str) -> None:
        get_run_logger().error("%s: %s\n%s", name, how, message)


class NodePage(_Page):
    """Reports the nodes that a run computes itself: a progress bar and a table for each."""

    def __init__(self) -> None:
        self._bars: dict[str, UUID] = {}
        self._updated: dict[str, float] = {}

    def started(self, name: str) -> None:
        get_run_logger().info("%s: started", name)
        self._updated[name] = 0.0
        self._move(name, 0.0, name)

    def _move(self, name: str, share: float, text: str) -> None:
        with _if_the_server_answers():
            if bar := self._bars.get(name):
                artifacts.update_progress_artifact(bar, progress=share, description=text)
            else:
                self._bars[name] = _bar(text, share)

    def progress(self, name: str, done: int, total: int, metrics: Metrics) -> None:
        """Move the bar, at most every `UPDATE_EVERY_S`."""
        now = time.monotonic()
        if now - self._updated[name] < UPDATE_EVERY_S:
            return
        self._updated[name] = now
        text = _numbers(metrics) if total else WAITING
        self._move(name, 100 * done / total if total else 0.0, f"{name}: {text}")

    def line(self, name: str, text: str) -> None:
        get_run_logger().info("%s | %s", name, text)

    def finished(self, name: str, manifest: Manifest) -> None:
        """Fill the bar and show what was committed."""
        self._move(name, 100.0, f"{name}: {_numbers(manifest.metrics)}")
        _log_commit(name, manifest)
        with _if_the_server_answers():
            show_node(manifest)


class RunPage(_Page):
    """Reports the nodes that a run sends to other runs: one progress bar for all."""

    def __init__(self, total: int, hits: int) -> None:
        self._total, self._done = total, hits
        self._lock = threading.Lock()
        self._bar = _bar("all nodes", 100 * self.note().share)

    def note(self) -> Note:
        """What others may see of the run."""
        share = self._done / self._total if self._total else 1.0
        return Note(done=self._done, total=self._total, share=share)

    def finished(self, name: str, manifest: Manifest) -> None:
        """Move the bar by one node."""
        with self._lock:
            self._done += 1
            note = self.note()
        with _if_the_server_answers():
            text = f"{note.done} of {note.total} nodes"
            artifacts.update_progress_artifact(
                self._bar, progress=100 * note.share, description=text
            )
        _log_commit(f"{note.done}/{note.total}  {name}", manifest)


def _log_commit(name: str, manifest: Manifest) -> None:
    get_run_logger().info(
        "%s: committed %s after %.1f s  %s",
        name, manifest.ref.key, manifest.seconds, _numbers(manifest.metrics),
    )  # fmt: skip


def _bar(description: str, progress: float = 0.0) -> UUID:
    made = artifacts.create_progress_artifact(progress=progress, description=description)
    assert isinstance(made, UUID)
    return made


# ---------------------------------------------------------------- tables, figures, the report
def show_plan(planned: Sequence[Planned], place: str) -> None:
    """Show a table of all nodes: hit or miss, and for a miss what changed. `place` is the
    experiment and the profile: what keys begin with, so that each has a history of its own."""
    rows = [
        {
            "node": item.node.name,
            "key": item.node.key,
            "pool": item.node.stage.pool,
            "found": "hit" if item.hit else "miss",
            "what changed": "; ".join(item.changes),
        }
        for item in planned
    ]
    artifacts.create_table_artifact(
        table=rows, key=_slug(f"{place}-plan"), description="Nodes of this run"
    )


def show_node(manifest: Manifest) -> None:
    """Show a table with key, inputs and metrics of an artifact."""
    experiment = next((tag for tag in flow_run.tags or [] if tag in {*EXPERIMENTS, ALL}), "")
    facts: dict[str, Any] = {
        "key": manifest.ref.key,
        "seconds": f"{manifest.seconds:.1f}",
        "rows": manifest.rows,
        "bytes": manifest.bytes,
        **{f"input {name}": ref.key for name, ref in manifest.inputs.items()},
        **{name: f"{value:.6g}" for name, value in manifest.metrics.items()},
    }
    artifacts.create_table_artifact(
        table=[{"what": name, "value": str(value)} for name, value in facts.items()],
        key=_slug(f"{manifest.profile}-{experiment}-node-{manifest.name}"),
        description=f"{manifest.name} of profile {manifest.profile}",
    )


def show_report(store: Store, manifest: Manifest, place: str) -> None:
    """Show a report's text with its figures inside."""
    folder = store.intact(manifest)
    pictures = _pictures(folder)
    text = FIGURE.sub(
        lambda figure: f"![{figure[1]}]({pictures.get(figure[2], figure[2])})",
        (folder / "report.md").read_text("utf-8"),
    )
    artifacts.create_markdown_artifact(
        markdown=text, key=_report_key(manifest, place, "report"), description=manifest.label
    )


def show_parts(store: Store, manifest: Manifest, place: str) -> None:
    """Show each table and each figure of a report."""
    folder = store.intact(manifest)
    for table in sorted(folder.glob("*.csv")):
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        artifacts.create_table_artifact(
            table=rows, key=_report_key(manifest, place, table.stem), description=table.name
        )
    for name, uri in _pictures(folder).items():
        key = _report_key(manifest, place, f"{Path(name).stem}-figure")
        artifacts.create_image_artifact(image_url=uri, key=key, description=name)


def _report_key(manifest: Manifest, place: str, name: str) -> str:
    title = manifest.label.removeprefix("report").strip("[]")
    return _slug(f"{place if place.endswith(title) else f'{place} {title}'} {name}")


def _pictures(folder: Path) -> dict[str, str]:
    """Return the data URI of each figure of a report by its file name."""
    return {
        picture.name: "data:image/svg+xml;base64," + base64.b64encode(picture.read_bytes()).decode()
        for picture in sorted(folder.glob("*.svg"))
    }
