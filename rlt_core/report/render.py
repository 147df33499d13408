"""Writes a report: report.md, report.html (one file, pictures inside), two CSV files, figures."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from rlt_core.evaluation.intervals import Estimate
from rlt_core.printable import printable
from rlt_core.report.data import ReportData
from rlt_core.report.figures import draw
from rlt_core.report.scores import write_csv
from rlt_core.report.traces import NOTE, write_traces_csv

NOTHING = "–"  # noqa: RUF001


def render_report(data: ReportData, out: Path) -> None:
    """Write the report's files into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    figures = draw(data, out)
    write_csv(data.scores, out / "scores.csv")
    write_traces_csv(data.traces, out / "traces.csv")
    for name, environment in (("report.md", _markdown()), ("report.html", _html())):
        pictures = {
            file: _data_uri(out / file) if name == "report.html" else file for file in figures
        }
        text = environment.get_template(f"{name}.j2").render(
            data=data, figures=figures, pictures=pictures, about_traces=NOTE
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


# ---------------------------------------------------------------- values as text
def percent(value: Any) -> str:
    """`84.0 [79.1, 88.2]` of something with value, low and high; `84.0` of a fraction."""
    if value is None:
        return NOTHING
    if isinstance(value, float | int):
        return f"{100 * value:.1f}"
    return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def points(value: Estimate | None) -> str:
    """A difference of fractions in percentage points, signed."""
    if value is None:
        return NOTHING
    if value.low == value.high == 0:
        return "0.0 (alike on every question)"
    return f"{100 * value.value:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"


def number(value: Any) -> str:
    """Three or four digits; with an interval where there is one."""
    if value is None:
        return NOTHING
    if isinstance(value, float | int):
        return "not finite" if not math.isfinite(value) else f"{value:.4g}"
    if value.value is None:
        return NOTHING
    return f"{value.value:.4g} [{value.low:.4g}, {value.high:.4g}]"


def duration(seconds: float) -> str:
    """`42 s`, `12 min 5 s`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes in decimal units."""
    from rich.filesize import decimal

    return decimal(int(count))


def fenced(text: str) -> str:
    """A code block that no run of backticks in the text can close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{printable(text)}\n{fence}"


def code(text: object) -> str:
    """A name as code; as escaped text where it has marks that code cannot hold in a table."""
    name = str(text)
    return cell(name) if re.search(r"[`|\s]", name) else f"`{name}`"


def cell(text: object) -> str:
    """Text in a table cell or a line: on one line, none of Markdown's or HTML's marks active."""
    flat = printable(" ".join(str(text).split()))
    return re.sub(r"([\\`*_{}\[\]<>#|!~&$])", r"\\\1", flat)
