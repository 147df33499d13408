"""Values as text: numbers for people, and text of unknown origin made inert."""

from __future__ import annotations

import math
import re
from typing import Any

from rlt_core.evaluation.intervals import Estimate
from rlt_core.printable import printable

NOTHING = "–"  # noqa: RUF001


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


def p_value(value: float | None) -> str:
    """Three digits after the point, and never 0."""
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
