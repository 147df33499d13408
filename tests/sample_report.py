"""Reports of stores that tests wrote by hand, and their pages as tables."""

import csv
import io
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markdown_it import MarkdownIt

from flows.cli.report import show
from flows.cli.terminal import Console
from rlt_core.evaluation.crossed import Floats
from rlt_core.report.gather import ReportData
from rlt_core.report.render import render_report
from rlt_core.stages import ReportConfig, TableRow
from rlt_core.store import Manifest, Store


def answers(rate: float, questions: int = 24, samples: int = 2, seed: int = 0) -> Floats:
    """(Q, N) answers of a model; questions differ in how hard they are."""
    rng = np.random.default_rng([seed, questions])
    level_Q = np.clip(rate + 0.3 * np.linspace(-1, 1, questions), 0, 1)
    return (rng.random((questions, samples)) < level_Q[:, None]).astype(float)


def report_of(
    store: Store,
    made: Mapping[str, Manifest],
    rows: Sequence[TableRow] = (),
    **config: Any,
) -> ReportData:
    """What a report of these artifacts says; `config`: fields of its config."""
    inputs = {name: (manifest, store.intact(manifest)) for name, manifest in made.items()}
    shown = ReportConfig(**{"profile": "laptop", "title": "table-1", "rows": tuple(rows)} | config)
    return ReportData(inputs, shown, "0123456789abcdef", store)


def written(data: ReportData, folder: Path) -> tuple[str, str, dict[str, list[dict[str, str]]]]:
    """(Markdown, HTML, name of a CSV -> its rows) of a rendered report."""
    render_report(data, folder)
    tables = {}
    for file in folder.glob("*.csv"):
        with file.open(newline="") as opened:
            tables[file.name] = list(csv.DictReader(opened))
    return (folder / "report.md").read_text(), (folder / "report.html").read_text(), tables


class Opening(NamedTuple):
    """The beginning of a report's text, as a terminal shows it."""

    title: str
    answer: list[str]
    """What was asked, the answer, how certain it is, the cost."""
    table: list[list[str]]
    """The first table: its names, then its rows."""


def opening(folder: Path) -> Opening:
    """What `rlt report` prints of a rendered report."""
    out = io.StringIO()
    show(Console(file=out, width=100_000), folder)
    title, *lines = out.getvalue().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("Asked."))
    text = (folder / "report.md").read_text()
    html = MarkdownIt("commonmark").enable("table").render(text)
    table = [[" ".join(cell.split()) for cell in row] for row in Page(html).tables[0]]
    for row in table:
        assert any(all(cell in line for cell in row) for line in lines), row
    return Opening(title, lines[first : first + 4], table)


def lines_of(data: ReportData, task: str) -> dict[str, dict[str, Any]]:
    """Rows of the table of a task by their model."""
    assert data.experiment
    return {row["model"]: row for row in data.experiment.tables[task]}


class Page(HTMLParser):
    """Tags, text, and rows of cells of every table of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[str] = []
        self.text = ""
        self.in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data
