"""Write a report: report.md, report.html (one file with its figures inside), CSV files, figures."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

from rlt_core.report.csv_files import write_csv_files
from rlt_core.report.figures import Figure, plot_figures
from rlt_core.report.gather import ReportData
from rlt_core.report.page import Block, page, title
from rlt_core.report.texts import cell

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #2a5c8a; --alarm: #c4622d; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
h1, h2, h3 {{ line-height: 1.2; margin: 2em 0 .6em; }}
h1 {{ margin-top: 0; }}
h2 {{ border-bottom: 1px solid var(--line); padding-bottom: .2em; }}
.wide {{ overflow-x: auto; }}
table {{ width: max-content; border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ max-width: 16em; text-align: left; padding: .25em .8em .25em 0; border-bottom: 1px solid var(--line); vertical-align: top; }}
th {{ font-weight: 600; max-width: 11em; }}
td[style] {{ white-space: nowrap; }}
code, pre {{ font: 13px/1.45 ui-monospace, monospace; }}
pre {{ background: var(--soft); padding: .7em 1em; white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid var(--line); }}
figure {{ margin: 1em 0; }}
img {{ max-width: 100%; background: white; }}
figcaption {{ opacity: .75; font-size: 13px; }}
.sides {{ display: grid; grid-template-columns: 1fr 1fr; gap: 1em; }}
.sides > div {{ min-width: 0; }}
blockquote, ul {{ margin: 1em 0; padding: .1em 1em; background: var(--soft); border-left: 3px solid var(--accent); }}
ul {{ padding: .4em 1em .4em 2em; background: #c4622d1a; border-color: var(--alarm); }}
</style>
</head>
<body>
"""  # noqa: E501


def render_report(data: ReportData, out: Path) -> None:
    """Write the report's files into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    figures = plot_figures(data)
    blocks = page(data, figures)
    for figure in figures.values():
        (out / figure.file).write_bytes(figure.png)
    write_csv_files(data, out)
    text = "\n\n".join(map(_markdown, blocks)) + "\n"
    (out / "report.md").write_text(text, encoding="utf-8")
    html = HEAD.format(title=escape(title(data))) + "\n".join(map(_html, blocks))
    (out / "report.html").write_text(f"{html}\n</body>\n</html>\n", encoding="utf-8")


def _markdown(block: Block) -> str:
    if isinstance(block, Figure):
        return f"![{cell(block.caption)}]({block.file})"
    return block if isinstance(block, str) else "\n\n".join(block)


def _html(block: Block) -> str:
    if isinstance(block, Figure):
        source = f"data:image/png;base64,{base64.b64encode(block.png).decode()}"
        caption = escape(block.caption)
        image = f'<img src="{source}" alt="{caption}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    if isinstance(block, tuple):
        sides = "".join(f"<div>{_html(side)}</div>" for side in block)
        return f'<div class="sides">{sides}</div>'
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    html: str = markdown.render(block)
    return html.replace("<table>", '<div class="wide"><table>').replace(
        "</table>", "</table></div>"
    )
