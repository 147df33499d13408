"""Write a report: report.md, report.html (one file with its figures inside), CSV files, figures."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from rlt_core.prompts.format import label_of
from rlt_core.report import paper, tables, texts
from rlt_core.report.csv_files import write_csv_files
from rlt_core.report.figures import Figure, plot_figures
from rlt_core.report.gather import ReportData
from rlt_core.report.texts import NOTHING, Markdown, Number, cell, joined, number
from rlt_core.report.trace_sets import NOTE
from rlt_core.report.training import WINDOW_STEPS

TEMPLATES = FileSystemLoader(Path(__file__).parent)
STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
STYLE_SHA256 = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
"""The page's Content-Security-Policy allows this style and its figures: no script, no request."""
SIDE = Markdown("\x1e")
"""Stands around texts that a wide page shows side by side; no text holds it (`printable`)."""
CELLS = {
    each.__name__: each
    for each in (
        texts.percent, texts.points, texts.number, texts.p_value, texts.duration, texts.joined,
        texts.code, texts.fenced,
    )
}  # fmt: skip


def render_report(data: ReportData, out: Path) -> None:
    """Write the report's files into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    figures = plot_figures(data)
    for figure in figures.values():
        (out / figure.file).write_bytes(figure.png)
    write_csv_files(data, out)
    title = f"{data.title}, profile {data.profile}"
    text = _page(data, title, figures)
    markdown = text.replace(f"\n{SIDE}\n", "\n").replace(SIDE, "")
    (out / "report.md").write_text(markdown, encoding="utf-8")
    page = Environment(loader=TEMPLATES, keep_trailing_newline=True, autoescape=True)
    html = page.get_template("report.html.jinja").render(
        title=title, body=_html(text, figures), style=Markup(STYLE), style_sha256=STYLE_SHA256
    )
    (out / "report.html").write_text(html, encoding="utf-8")


def _page(data: ReportData, title: str, figures: Mapping[str, Figure]) -> str:
    """The page as Markdown, with `SIDE`s."""
    environment = Environment(
        loader=TEMPLATES, finalize=cell, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip

    def figure(file: str) -> Markdown:
        return Markdown(f"![{cell(figures[file].caption)}]({file})")

    def table(rows: Sequence[Any], columns: Mapping[str, str] | None = None) -> Markdown:
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

    def several(numbers: Sequence[float]) -> Number:
        return joined(map(number, numbers)) if len(numbers) > 1 else NOTHING

    environment.filters.update(CELLS | {"table": table, "several": several})
    environment.globals.update(
        CELLS | {name: each for name, each in vars(tables).items() if callable(each)},
        markdown=Markdown, figure=figure, figures=figures, label_of=label_of, paper=paper,
        NOTHING=NOTHING, NOTE=NOTE, SIDE=SIDE, WINDOW_STEPS=WINDOW_STEPS,
        MEASURE_NAMES=tables.MEASURE_NAMES,
    )  # fmt: skip
    template = environment.get_template("report.md.jinja")
    return template.render(data=data, title=title).strip("\n") + "\n"


def _html(text: str, figures: Mapping[str, Figure]) -> Markup:
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    pieces = [markdown.render(each) for each in text.split(SIDE)]
    for place, piece in enumerate(pieces):  # between, left, right, between, …
        if place % 3:
            sides = ('<div class="sides">', "") if place % 3 == 1 else ("", "</div>")
            pieces[place] = f"<div>{piece}</div>".join(sides)
    html = (
        "\n".join(pieces)
        .replace(' style="text-align:right"', ' class="right"')
        .replace("<table>", '<div class="wide"><table>')
    )
    html = html.replace("</table>", "</table></div>")
    picture = r'<p><img src="([^"]*)" alt="[^"]*" /></p>'
    return Markup(re.sub(picture, partial(_figure, figures), html))


def _figure(figures: Mapping[str, Figure], found: re.Match[str]) -> str:
    """A picture with its bytes in the page."""
    figure = figures[found[1]]
    source = f"data:image/png;base64,{base64.b64encode(figure.png).decode()}"
    caption = escape(figure.caption)
    image = f'<img src="{source}" alt="{caption}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
