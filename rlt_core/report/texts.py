"""Values and tables as Markdown; text of unknown origin is made inert."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlt_core.printable import printable
from rlt_core.report import terminal


class Markdown(str):
    """Text that is Markdown already and is not escaped."""


MANY = 4
"""Rows of a table from which equal columns are written once."""


class Number(Markdown):
    """A number as text: a table aligns a column of them to the right."""


NOTHING = Number("–")  # noqa: RUF001
_HTML, _MARKDOWN = "\x1e", "\x1f"
"""Stand around what only one of the two pages has; no other text holds them (`printable`)."""


def only_html(tags: str) -> Markdown:
    """Tags that are in the page alone."""
    return Markdown(f"{_HTML}{tags}{_HTML}")


def only_markdown(text: str) -> Markdown:
    """Text that the page has in another form."""
    return Markdown(f"{_MARKDOWN}{text}{_MARKDOWN}")


def as_markdown(text: str) -> str:
    """Return the text of `report.md`."""
    return (
        re.sub(f"\n*{_HTML}[^{_HTML}]*{_HTML}\n*", "\n\n", text).replace(_MARKDOWN, "").strip("\n")
        + "\n"
    )


def for_page(text: str) -> list[str]:
    """Return what the page has: Markdown and tags in turn."""
    return re.sub(f"{_MARKDOWN}[^{_MARKDOWN}]*{_MARKDOWN}", "", text).split(_HTML)


def percent(value: Any) -> Number:
    """`84.0 [79.1, 88.2]` of something with value, low and high; `84.0` of a fraction."""
    return _shown(value, ".1f", 100)


def points(value: Any) -> Number:
    """A difference of fractions in percentage points, signed."""
    if isinstance(value, float | int | None) or value.low or value.high:
        return _shown(value, "+.1f", 100)
    return Number("0.0 (equal on every question)")


def number(value: Any) -> Number:
    """About three digits: `1234`, `123`, `12.3`, `1.23`, `0.123`, and `1.2e-05` where this would be
    nothing; with its interval, to as many places, where there is one."""
    if value == 0:
        return Number("0")
    is_single = isinstance(value, float | int | None)
    parts = [value] if is_single else [value.value, value.low, value.high]
    size = max((abs(each) for each in parts if each is not None), default=0.0)
    places = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return _shown(value, f".{places}f" if size >= 0.001 or not size else ".1e")


def _shown(value: Any, form: str, scale: int = 1) -> Number:
    if isinstance(value, float | int | None):
        if value is None:
            return NOTHING
        return Number(f"{scale * value:{form}}" if math.isfinite(value) else "not finite")
    if value.value is None:
        return NOTHING
    low, high = (f"{scale * end:{form}}" for end in (value.low, value.high))
    return Number(f"{scale * value.value:{form}} [{low}, {high}]")


def p_value(value: float | None) -> Number:
    """Three digits after the point, and never 0."""
    if value is None:
        return NOTHING
    return Number("< 0.001" if value < 0.001 else f"{value:.3f}")


def duration(seconds: float) -> Number:
    """As on a terminal: `1.7 s`, `85 s`, `12 min`, `3.4 h`."""
    return Number(terminal.duration(seconds))


def joined(values: Iterable[Markdown], by: str = "; ") -> Number:
    """Several numbers or names in one cell."""
    return Number(by.join(values)) or NOTHING


def several(values: Sequence[float], form: Callable[[float], Number] = number) -> Number:
    """The values of several seeds; the ends of many. One is no list."""
    if len(values) <= MANY:
        return joined(map(form, values)) if len(values) > 1 else NOTHING
    return Number(f"{form(min(values))} to {form(max(values))}")


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

    Values that are not `Markdown` are escaped. Columns of numbers are aligned to the right. What
    `MANY` rows or more have in common is a line below. No rows are no table.
    """
    if not rows:
        return Markdown()
    first, *others = (name for name in rows[0] if any(row[name] != NOTHING for row in rows))
    same = [
        name
        for name in others
        if len(rows) >= MANY and all(row[name] == rows[0][name] for row in rows)
    ]
    columns = [first, *(name for name in others if name not in same)]
    marks = ["---:" if _is_numeric(row[name] for row in rows) else "---" for name in columns]
    cells = [[cell(row[name]) for name in columns] for row in rows]
    lines: list[Sequence[str]] = [[cell(name) for name in columns], marks, *cells]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    if same:
        common = "; ".join(f"{cell(name)} {cell(rows[0][name])}" for name in same)
        text += f"\n\nAll rows: {common}."
    return Markdown(text)


def _is_numeric(values: Iterable[Any]) -> bool:
    return all(isinstance(value, Number | int) for value in values)


def environment(folder: Path) -> Environment:
    """Return the environment of Markdown templates in a folder: what they print is escaped unless
    it is `Markdown`, and they can call all of this module."""
    made = Environment(
        loader=FileSystemLoader(folder), finalize=cell, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    cells = {name: each for name, each in globals().items() if callable(each)}
    made.filters |= cells
    made.globals |= cells | {"markdown": Markdown, "NOTHING": NOTHING}
    return made
