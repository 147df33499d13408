"""Values and tables as Markdown; text of unknown origin is made inert."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from rlt_core.evaluation.intervals import Estimate
from rlt_core.printable import printable


class Markdown(str):
    """Text that is Markdown already and is not escaped."""


class Number(Markdown):
    """A number as text: a table aligns a column of them to the right."""


NOTHING = Number("–")  # noqa: RUF001


def percent(value: Any) -> Number:
    """`84.0 [79.1, 88.2]` of something with value, low and high; `84.0` of a fraction."""
    if value is None:
        return NOTHING
    if isinstance(value, float | int):
        return Number(f"{100 * value:.1f}")
    return Number(f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]")


def points(value: Estimate | None) -> Number:
    """A difference of fractions in percentage points, signed."""
    if value is None:
        return NOTHING
    if value.low == value.high == 0:
        return Number("0.0 (equal on every question)")
    return Number(f"{100 * value.value:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]")


def number(value: Any) -> Number:
    """Four digits, or all before the point; with an interval where there is one."""
    if value is None:
        return NOTHING
    if isinstance(value, float | int):
        if not math.isfinite(value):
            return Number("not finite")
        return Number(f"{value:.0f}" if abs(value) >= 10_000 else f"{value:.4g}")
    if value.value is None:
        return NOTHING
    return Number(f"{value.value:.4g} [{value.low:.4g}, {value.high:.4g}]")


def p_value(value: float | None) -> Number:
    """Three digits after the point, and never 0."""
    if value is None:
        return NOTHING
    return Number("< 0.001" if value < 0.001 else f"{value:.3f}")


def duration(seconds: float) -> Number:
    """`42.0 s`, `12 min 5 s`, `3 h 20 min`."""
    if seconds < 100:
        return Number(f"{seconds:.1f} s")
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return Number(f"{minutes} min {rest} s")
    return Number(f"{minutes // 60} h {minutes % 60} min")


def joined(values: Iterable[Number]) -> Number:
    """Several numbers in one cell."""
    return Number("; ".join(values)) or NOTHING


# ---------------------------------------------------------------- text of unknown origin
def fenced(text: str) -> Markdown:
    """A code block that no run of backticks in the text can close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown(f"{fence}text\n{printable(text)}\n{fence}")


def code(text: object) -> Markdown:
    """A name as code; as escaped text where it has marks that code cannot hold in a table."""
    name = str(text)
    return cell(name) if re.search(r"[`|\s]", name) else Markdown(f"`{name}`")


def codes(names: Iterable[str]) -> Markdown:
    """Several names as code."""
    return Markdown(" ".join(code(name) for name in names)) or NOTHING


def cell(text: object) -> Markdown:
    """Text on one line, with none of Markdown's or HTML's marks active."""
    if isinstance(text, Markdown):
        return text
    flat = printable(" ".join(str(text).split()))
    return Markdown(re.sub(r"([\\`*_{}\[\]<>#|!~&$])", r"\\\1", flat))


# ---------------------------------------------------------------- tables
def table(rows: Sequence[dict[str, Any]]) -> Markdown:
    """Rows (column -> value) as a Markdown table without the columns that are empty throughout.

    Values that are not `Markdown` are escaped. Columns of numbers are aligned to the right. No
    rows are no table.
    """
    if not rows:
        return Markdown()
    columns = [name for name in rows[0] if any(row[name] != NOTHING for row in rows)]
    marks = ["---:" if _is_numeric(row[name] for row in rows) else "---" for name in columns]
    cells = [[cell(row[name]) for name in columns] for row in rows]
    lines: list[Sequence[str]] = [[cell(name) for name in columns], marks, *cells]
    return Markdown("\n".join("| " + " | ".join(line) + " |" for line in lines))


def _is_numeric(values: Iterable[Any]) -> bool:
    return all(isinstance(value, Number | int) for value in values)
