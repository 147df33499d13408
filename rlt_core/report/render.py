"""Write a report: report.md, report.html (one file with its figures inside), CSV files, figures."""

import base64
import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markdown_it import MarkdownIt
from markupsafe import Markup
from rich.filesize import decimal

from rlt_core.evaluation.intervals import Estimate
from rlt_core.explorer import heatmap
from rlt_core.printable import printable, spreadsheet_cell
from rlt_core.prompts.format import label_of
from rlt_core.report import experiment, paper, ranks, scores, svg, tables, texts, trace_sets
from rlt_core.report.answer import ANY, ASKED, PairedContrast, contrasts, legend
from rlt_core.report.figures import plot_figures
from rlt_core.report.gather import ReportData
from rlt_core.report.inputs import Row
from rlt_core.report.svg import Figure
from rlt_core.report.training import WINDOW_STEPS
from rlt_core.reward import diagnostics

TEMPLATES = Path(__file__).parent
STYLE = heatmap.CSS + svg.STYLE + Path(__file__).with_name("report.css").read_text(encoding="utf-8")
STYLE_SHA256 = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
"""The page's Content-Security-Policy allows this style and its figures: no script, no request."""
MOST_TOKENS = 1500
"""Tokens that a page shows of a text; `rlt traces` shows all."""


def render_report(data: ReportData, out: Path) -> None:
    """Write the report's files into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    found = contrasts(data)
    figures = plot_figures(data, found)
    for figure in figures.values():
        (out / figure.file).write_text(figure.svg(), encoding="utf-8")
    _write_csv_files(data, out)
    title = f"{data.title}, {data.unfinished or f'profile {data.profile}'}"
    text = _page(data, found, title, figures)
    (out / "report.md").write_text(texts.as_markdown(text), encoding="utf-8")
    pages = FileSystemLoader(TEMPLATES)
    page = Environment(loader=pages, keep_trailing_newline=True, autoescape=True)
    html = page.get_template("report.html.jinja").render(
        title=title, body=_html(text), style=Markup(STYLE), style_sha256=STYLE_SHA256
    )
    (out / "report.html").write_text(html, encoding="utf-8")


def _page(
    data: ReportData, found: list[PairedContrast], title: str, figures: Mapping[str, Figure]
) -> str:
    """Both pages: Markdown, with what only one of them has."""
    environment = texts.environment(TEMPLATES)

    def figure(name: str) -> texts.Markdown:
        """A figure, if there is one of the name."""
        if name not in figures:
            return texts.Markdown()
        image = f"![{texts.cell(figures[name].caption)}]({figures[name].file})"
        return texts.Markdown(texts.only_markdown(image) + texts.only_html(_figure(figures[name])))

    def table(rows: Sequence[Any], columns: Mapping[str, str] | None = None) -> texts.Markdown:
        """`columns`: name -> expression over the fields of a row, and `row` itself."""
        if columns is None:
            return texts.table(rows)
        compiled = {
            name: environment.compile_expression(each, undefined_to_none=False)
            for name, each in columns.items()
        }
        fields = [(row, row if isinstance(row, dict) else vars(row)) for row in rows]
        return texts.table(
            [
                {name: each(known, row=row) for name, each in compiled.items()}
                for row, known in fields
            ]
        )

    environment.filters.update(
        table=table, scale=heatmap.legend,
        channel_input=lambda name: heatmap.channel_input(name, name == "reward"),
    )  # fmt: skip
    environment.globals.update(
        {name: each for name, each in vars(tables).items() if callable(each)},
        figure=figure, figures=figures, legend=legend, label_of=label_of, paper=paper,
        decimal=decimal,
        WINDOW_STEPS=WINDOW_STEPS, MOST_TOKENS=MOST_TOKENS, CHANNELS=heatmap.CHANNELS,
        heatmap=heatmap.heatmap, diagnostics=diagnostics, ASKED=ASKED, ANY=ANY,
    )  # fmt: skip
    template = environment.get_template("report.md.jinja")
    return template.render(data=data, contrasts=found, title=title).strip("\n") + "\n"


def _html(text: str) -> Markup:
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    pieces = texts.for_page(text)
    pieces[::2] = map(markdown.render, pieces[::2])
    return Markup(
        "".join(pieces)
        .replace(' style="text-align:right"', ' class="right"')
        .replace("<table>", '<div class="wide"><table>')
        .replace("</table>", "</table></div>")
    )


def _figure(figure: Figure) -> str:
    """The charts, and below them the SQL and the downloads."""
    links = " ".join(
        _download(*each)
        for each in (
            (figure.file, "image/svg+xml", figure.svg()),
            (f"{figure.name}.csv", "text/csv", _csv_text(svg.COLUMNS, figure.rows)),
        )
    )
    return (
        f'<figure><div class="charts">{"".join(figure.svgs())}</div><figcaption>'
        f"{escape(figure.caption)} </figcaption><details><summary>SQL and data</summary><pre>"
        f"{escape(printable(figure.sql))}</pre>{links}</details></figure>"
    )


def _download(file: str, kind: str, content: str) -> str:
    data = base64.b64encode(content.encode()).decode()
    return f'<a download="{file}" href="data:{kind};base64,{data}">{file}</a>'


# ---------------------------------------------------------------- CSV
def _write_csv_files(data: ReportData, folder: Path) -> None:
    """Write the CSV files that have content; `scores.csv` and `traces.csv` always."""
    files: dict[str, tuple[Sequence[str], Iterable[Row]]] = {
        "scores": (scores.COLUMNS, data.evaluations.scores),
        "traces": (("name", "traces", *trace_sets.MEANS), data.traces),
    }
    if data.experiment:
        files["table"] = (experiment.COLUMNS, data.experiment.rows)
    if data.overlaps:
        files["overlaps"] = (scores.OVERLAP_COLUMNS, data.overlaps)
    if data.compared:
        rows = data.compared["by_question"]
        files["compared"] = ([*rows[0]], rows)
    if data.rank_sets:
        files["ranks"] = (ranks.COLUMNS, [row for one in data.rank_sets for row in one["rows"]])
    for name, (columns, rows) in files.items():
        (folder / f"{name}.csv").write_text(_csv_text(columns, rows), encoding="utf-8")


def _csv_text(columns: Sequence[str], rows: Iterable[Row]) -> str:
    """Return rows as CSV: every number, unrounded; a value that does not exist is empty, and a text
    that a spreadsheet would take for a formula begins with an apostrophe."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in map(_flat, rows):
        writer.writerow({name: spreadsheet_cell(value) for name, value in row.items()})
    return file.getvalue()


def _flat(row: Row) -> Row:
    """An Estimate as the columns `{name}`, `{name}_low` and `{name}_high` (of `value`: `low` and
    `high`), a list or a mapping separated by semicolons."""
    flat: Row = {}
    for name, value in row.items():
        if isinstance(value, Estimate):
            prefix = "" if name == "value" else f"{name}_"
            flat |= {name: value.value, f"{prefix}low": value.low, f"{prefix}high": value.high}
        elif isinstance(value, Mapping):
            pairs = value.items()
            flat[name] = ";".join(f"{'' if key is None else key}:{each}" for key, each in pairs)
        else:
            flat.setdefault(name, ";".join(value) if isinstance(value, list) else value)
    return flat
