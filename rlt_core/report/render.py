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

from rlt_core.prompts.format import label_of
from rlt_core.report import paper, tables, texts
from rlt_core.report.csv_files import write_csv_files
from rlt_core.report.figures import Figure, plot_figures
from rlt_core.report.gather import ReportData
from rlt_core.report.texts import NOTHING, Markdown, Number, cell, joined, number
from rlt_core.report.trace_sets import NOTE
from rlt_core.report.training import WINDOW_STEPS

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #2a5c8a; --alarm: #c4622d; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; margin: 2em 0 .6em; }
h1 { margin-top: 0; }
h2 { border-bottom: 1px solid var(--line); padding-bottom: .2em; }
.wide { overflow-x: auto; }
table { width: max-content; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { max-width: 16em; text-align: left; padding: .25em .8em .25em 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; max-width: 11em; }
.right { text-align: right; }
td.right { white-space: nowrap; }
code, pre { font: 13px/1.45 ui-monospace, monospace; }
pre { background: var(--soft); padding: .7em 1em; white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid var(--line); }
figure { margin: 1em 0; }
img { max-width: 100%; background: white; }
figcaption { opacity: .75; font-size: 13px; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1em; }
.sides > div { min-width: 0; }
blockquote, ul { margin: 1em 0; padding: .1em 1em; background: var(--soft); border-left: 3px solid var(--accent); }
ul { padding: .4em 1em .4em 2em; background: #c4622d1a; border-color: var(--alarm); }
"""  # noqa: E501
STYLE_SHA256 = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEAD = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'sha256-{STYLE_SHA256}'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{title}}</title>
<style>{STYLE}</style>
</head>
<body>
"""  # noqa: E501
"""The page needs its own style and figures and nothing else: no script, no request."""


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
    html = HEAD.replace("{title}", escape(title)) + _html(text, figures)
    (out / "report.html").write_text(f"{html}\n</body>\n</html>\n", encoding="utf-8")


def _page(data: ReportData, title: str, figures: Mapping[str, Figure]) -> str:
    """The page as Markdown, with `SIDE`s."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), finalize=cell, undefined=StrictUndefined,
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
    )  # fmt: skip
    template = environment.get_template("report.md.jinja")
    return template.render(data=data, title=title).strip("\n") + "\n"


def _html(text: str, figures: Mapping[str, Figure]) -> str:
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
    return re.sub(r'<p><img src="([^"]*)" alt="[^"]*" /></p>', partial(_figure, figures), html)


def _figure(figures: Mapping[str, Figure], found: re.Match[str]) -> str:
    """A picture with its bytes in the page."""
    figure = figures[found[1]]
    source = f"data:image/png;base64,{base64.b64encode(figure.png).decode()}"
    caption = escape(figure.caption)
    image = f'<img src="{source}" alt="{caption}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
