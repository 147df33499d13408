"""Writes a report: report.md, report.html (one file, pictures inside), CSV files, figures."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rlt_core.printable import printable
from rlt_core.report import tables as views
from rlt_core.report.csv_files import write_csv_files
from rlt_core.report.gather import ReportData
from rlt_core.report.figures import draw
from rlt_core.report.texts import (
    cell,
    code,
    duration,
    fenced,
    number,
    p_value,
    percent,
    points,
    size,
)
from rlt_core.report.traces import NOTE


def render_report(data: ReportData, out: Path) -> None:
    """Write the report's files into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    figures = draw(data, out)
    write_csv_files(data, out)
    for name, environment in (("report.md", _markdown()), ("report.html", _html())):
        pictures = {
            file: _data_uri(out / file) if name == "report.html" else file for file in figures
        }
        text = environment.get_template(f"{name}.j2").render(
            data=data, figures=figures, pictures=pictures, about_traces=NOTE, views=views
        )
        (out / name).write_text(text, encoding="utf-8")


def _data_uri(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _environment(**options: Any) -> Environment:
    environment = Environment(
        loader=PackageLoader("rlt_core", "report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    filters: dict[str, Callable[..., str]] = {
        "percent": percent,
        "points": points,
        "number": number,
        "p_value": p_value,
        "duration": duration,
        "size": size,
        "printable": printable,
    }
    environment.filters |= filters
    return environment


def _html() -> Environment:
    """Everything that is inserted is escaped."""
    return _environment(autoescape=True)


def _markdown() -> Environment:
    environment = _environment(autoescape=False)
    environment.filters |= {"fenced": fenced, "cell": cell, "code": code}
    return environment
