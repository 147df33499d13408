"""Charts as SVG: text stays text, colours are CSS variables that follow a dark page.

A chart is as wide as a phone; a page sets several side by side. Nothing is drawn outside the data:
points are joined, never extrapolated.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rlt_core.evaluation.intervals import Estimate
from rlt_core.printable import printable
from rlt_core.report.inputs import Row
from rlt_core.report.texts import number, percent, points

STYLE = Path(__file__).with_name("figure.css").read_text(encoding="utf-8")
WIDTH, ROW, PLOT, LETTER = 360, 36, 150, 6.5
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 24, 36
COLORS = 6
GREY = -1
"""Color of what the others are compared with."""
FORMS: dict[str, Callable[[Any], str]] = {"percent": percent, "points": points, "": number}
COLUMNS = ("chart", "series", "x", "value", "low", "high")
"""Columns of a figure's download; a row has its `color`, too."""


@dataclass(frozen=True)
class Figure:
    """A figure of one or several charts."""

    name: str
    caption: str
    rows: Sequence[Row]
    """`COLUMNS` and `color` of what is drawn, the rows of a chart and of a series together: without
    an `x_label` one value per series, with its interval; else points of lines."""
    sql: str
    """Reads what the figure shows from the store."""
    label: str = ""
    """Of the values' axis."""
    x_label: str = ""
    unit: str = ""
    """`percent` or `points` of fractions, or empty for other numbers."""
    bounds: tuple[float, float] | None = None
    """Ends of the values' axis; by default those of the data."""

    @property
    def file(self) -> str:
        return f"{self.name}.svg"

    def charts(self) -> list[tuple[str, int]]:
        """Return each chart's content and height."""
        draw = _lines if self.x_label else _intervals
        grouped = itertools.groupby(self.rows, lambda row: row["chart"])
        drawn = [(title, draw(self, list(rows))) for title, rows in grouped]
        return [
            (_text(0, 14, title, "title") + "".join(content), height)
            for title, (content, height) in drawn
        ]

    def svgs(self) -> list[str]:
        """Return each chart, for a page."""
        return [
            f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img">{content}</svg>'
            for content, height in self.charts()
        ]

    def svg(self, columns: int = 3) -> str:
        """Return one SVG file of all charts, with its style inside."""
        charts, body, y = self.charts(), "", 0
        columns = min(columns, len(charts))
        for start in range(0, len(charts), columns):
            row = charts[start : start + columns]
            for column, (content, height) in enumerate(row):
                body += (
                    f'<svg class="chart" x="{column * (WIDTH + 24)}" y="{y}" width="{WIDTH}" '
                    f'height="{height}">{content}</svg>'
                )
            y += max(height for _, height in row) + 12
        width = columns * (WIDTH + 24) - 24
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="file" width="{width}" height="{y}" '
            f'viewBox="0 0 {width} {y}"><style>{STYLE}</style>{body}</svg>\n'
        )

    def shown(self, row: Row) -> str:
        """Return a value with its interval, as the tables have it."""
        single = row["low"] is None
        value = row["value"] if single else Estimate(row["value"], row["low"], row["high"], 0)
        return FORMS[self.unit](value)

    def tick(self, value: float) -> str:
        """Return the number at a tick of the values' axis."""
        return f"{100 * value:g}" if self.unit else f"{value:.4g}"


def _intervals(figure: Figure, rows: Sequence[Row]) -> tuple[list[str], int]:
    """Draw a row for each value with its interval; higher ones if a name is longer than a line."""
    low, high = figure.bounds or _around([0.0, *(end for row in rows for end in _ends(row))])
    scale, shown = _scale(low, high, 0, WIDTH), [figure.shown(row) for row in rows]
    longest = max(len(row["series"]) + len(value) for row, value in zip(rows, shown, strict=True))
    size = ROW + 16 * (longest * LETTER > WIDTH)
    bottom, drawn = TOP + size * len(rows), []
    for tick in _ticks(low, high, 5):
        x, strong = scale(tick), " zero" if tick == 0 and figure.unit != "percent" else ""
        drawn.append(_line(x, TOP, x, bottom + 4, f"grid{strong}"))
        anchor = "start" if x < 12 else "end" if x > WIDTH - 12 else "middle"
        drawn.append(_text(x, bottom + 17, figure.tick(tick), f"tick {anchor}"))
    drawn.append(_text(WIDTH / 2, bottom + 32, figure.label, "tick middle"))
    most = int(WIDTH / LETTER)
    for row, value, y in zip(rows, shown, range(TOP, bottom, size), strict=True):
        name = row["series"] if len(row["series"]) <= most else f"{row['series'][: most - 1]}…"
        y_bar = y + size - 11
        bar = _line(scale(row["low"]), y_bar, scale(row["high"]), y_bar, "bar")
        dot = _dot(scale(row["value"]), y_bar, f"{row['series']}: {value}")
        texts = _text(0, y + 14, name) + _text(WIDTH, y + size - 22, value, "end")
        drawn.append(f'<g class="{_color(row)}">{texts}{bar}{dot}</g>')
    return drawn, bottom + BOTTOM


def _lines(figure: Figure, rows: Sequence[Row]) -> tuple[list[str], int]:
    """Draw a line for each series, with a mark at each point that has an interval."""
    finite = [row for row in rows if math.isfinite(row["value"])]
    if not finite:
        return [_text(LEFT, TOP + 40, "no finite value")], TOP + PLOT + BOTTOM
    xs, bottom = [row["x"] for row in finite], TOP + PLOT
    low, high = figure.bounds or _around([end for row in finite for end in _ends(row)])
    x_scale = _scale(min(xs), max(xs), LEFT + 6, WIDTH - RIGHT - 6)
    y_scale = _scale(low, high, bottom, TOP + 6)
    drawn = [_text((LEFT + WIDTH) / 2, bottom + 31, figure.x_label, "tick middle")]
    for tick in _ticks(low, high, 5):
        drawn.append(_line(LEFT, y_scale(tick), WIDTH - RIGHT, y_scale(tick), "grid"))
        drawn.append(_text(LEFT - 6, y_scale(tick) + 4, figure.tick(tick), "tick end"))
    for tick in _ticks(min(xs), max(xs), 6, whole=True):
        drawn.append(_text(x_scale(tick), bottom + 16, f"{tick:g}", "tick middle"))
    series = [list(one) for _, one in itertools.groupby(rows, lambda row: row["series"])]
    for one in series:
        drawn.append(f'<g class="{_color(one[0])}">')
        for is_drawn, run in itertools.groupby(one, lambda row: math.isfinite(row["value"])):
            if is_drawn:
                path = " ".join(f"{x_scale(r['x']):.1f},{y_scale(r['value']):.1f}" for r in run)
                drawn.append(f'<polyline class="line" points="{path}"/>')
        marked = [row for row in one if row["low"] is not None and row["color"] != GREY]
        for row in (each for each in marked if math.isfinite(each["value"])):
            x = x_scale(row["x"])
            hint = f"{row['series']} {figure.x_label} {row['x']:g}: {figure.shown(row)}"
            drawn.append(_line(x, y_scale(row["low"]), x, y_scale(row["high"]), "bar"))
            drawn.append(_dot(x, y_scale(row["value"]), hint))
        drawn.append("</g>")
    has_names = 1 < len(series) <= COLORS
    height, x = bottom + BOTTOM + 14 * has_names, 0.0
    for row in (one[0] for one in series if has_names):
        name = _text(x, height - 4, row["series"], "key")
        drawn.append(f'<g class="{_color(row)}">{name}</g>')
        x += 14 + 7 * len(row["series"])
    return drawn, height


# ---------------------------------------------------------------- axes
def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return a function from values to pixels; values beyond the ends are drawn at the ends."""

    def place(value: float) -> float:
        part = (min(max(value, low), high) - low) / ((high - low) or 1.0)
        return round(start + part * (end - start), 1)

    return place


def _ticks(low: float, high: float, most: int, whole: bool = False) -> Iterator[float]:
    """Yield round values between two others, at most so many."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    steps = (power * factor for factor in (1, 2, 5, 10, 20, 50))
    step = next(each for each in steps if span / each <= most and (each >= 1 or not whole))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    yield from (round(place * step, 12) for place in range(first, last + 1))


def _around(values: Sequence[float]) -> tuple[float, float]:
    """The ends of the values, with some room."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room * (low != 0), high + room * (high != 0)


def _ends(row: Row) -> list[float]:
    values = (row[name] for name in ("value", "low", "high"))
    return [each for each in values if each is not None and math.isfinite(each)]


# ---------------------------------------------------------------- elements
def _color(row: Row) -> str:
    return "grey" if row["color"] == GREY else f"color{row['color'] % COLORS}"


def _text(x: float, y: float, text: str, css: str = "") -> str:
    shown = escape(printable(" ".join(text.split())))
    return f'<text x="{x:g}" y="{y:g}" class="{css}">{shown}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="{css}"/>'


def _dot(x: float, y: float, hint: str) -> str:
    title = escape(printable(hint))
    return f'<circle cx="{x:g}" cy="{y:g}" r="4"><title>{title}</title></circle>'
