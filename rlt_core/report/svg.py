"""Charts as SVG: text stays text, colours are CSS variables that follow a dark page.

A chart is as wide as a phone; a page sets several side by side. Nothing is drawn outside the data:
points are joined, never extrapolated.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import NamedTuple

from rlt_core.printable import printable
from rlt_core.report.texts import number, percent, points

STYLE = Path(__file__).with_name("figure.css").read_text(encoding="utf-8")
WIDTH, ROW, PLOT, LETTER = 360, 36, 150, 6.5
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 24, 36
COLORS = 6
GREY = -1
"""Color of what the others are compared with."""
MOST_MARKS = 16
"""Points of a line that have marks; of more, the line is all there is."""
FORMS = {"percent": percent, "points": points, "": number}


class DrawnPoint(NamedTuple):
    """A value, with its 95% interval where it has one."""

    x: float | None
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points of one color: a row of intervals, or a line."""

    name: str
    points: Sequence[DrawnPoint]
    color: int = 0


@dataclass(frozen=True)
class Panel:
    """One chart. Without an `x_label` it has a row for each series, a value with its interval."""

    title: str
    series: Sequence[Series]
    y_label: str
    x_label: str = ""
    unit: str = ""
    """`percent` or `points` of fractions, or empty for other numbers."""
    bounds: tuple[float, float] | None = None
    """Ends of the values' axis; by default those of the data."""

    @property
    def height(self) -> int:
        if self.x_label:
            return TOP + PLOT + BOTTOM + 14 * self._has_names
        return TOP + self._row * len(self.series) + BOTTOM

    @property
    def _row(self) -> int:
        """Height of a row; higher where a name and its value are longer than a line."""
        most = max(len(one.name) + len(self._value(one.points[0])) for one in self.series)
        return ROW + 16 * (most * LETTER > WIDTH)

    @property
    def _has_names(self) -> bool:
        names = {one.name for one in self.series if one.name}
        return 1 < len(names) <= COLORS

    def svg(self, place: str = "") -> str:
        """Return the chart; `place`: its attributes `x` and `y` inside another one."""
        body = "".join(self._xy() if self.x_label else self._rows())
        title = _text(0, 14, self.title, "title")
        size = f'viewBox="0 0 {WIDTH} {self.height}"'
        if place:
            size += f' width="{WIDTH}" height="{self.height}" {place}'
        return f'<svg class="chart" {size} role="img">{title}{body}</svg>'

    # -------------------------------------------------------- rows of intervals
    def _rows(self) -> Iterator[str]:
        ends = [end for one in self.series for end in _ends(one.points[0])]
        scale = _Scale(*(self.bounds or _around([0.0, *ends])), 0, WIDTH)
        row, bottom = self._row, TOP + self._row * len(self.series)
        for tick in scale.ticks(5):
            strong = " zero" if tick == 0 and self.unit != "percent" else ""
            yield _line(scale(tick), TOP, scale(tick), bottom + 4, f"grid{strong}")
            anchor = (
                "start" if scale(tick) < 12 else "end" if scale(tick) > WIDTH - 12 else "middle"
            )
            yield _text(scale(tick), bottom + 17, self._tick(tick), f"tick {anchor}")
        yield _text(WIDTH / 2, bottom + 32, self.y_label, "tick middle")
        for place, one in enumerate(self.series):
            y, point = TOP + row * place, one.points[0]
            shown = self._value(point)
            yield f'<g class="{_color(one.color)}">' + _text(0, y + 14, _cut(one.name))
            yield _text(WIDTH, y + row - 22, shown, "end")
            if point.low is not None and point.high is not None:
                yield _line(scale(point.low), y + row - 11, scale(point.high), y + row - 11, "bar")
            yield _dot(scale(point.value), y + row - 11, f"{one.name}: {shown}") + "</g>"

    def _value(self, point: DrawnPoint) -> str:
        return FORMS[self.unit](point.value if point.low is None else point)

    def _tick(self, value: float) -> str:
        return f"{100 * value:g}" if self.unit else f"{value:.4g}"

    # -------------------------------------------------------- lines over x
    def _xy(self) -> Iterator[str]:
        everything = [point for one in self.series for point in one.points if _finite(point)]
        if not everything:
            yield _text(LEFT, TOP + 40, "no finite value")
            return
        xs = [float(point.x or 0.0) for point in everything]
        x_scale = _Scale(min(xs), max(xs), LEFT + 6, WIDTH - RIGHT - 6)
        ends = [end for point in everything for end in _ends(point)]
        bottom = TOP + PLOT
        y_scale = _Scale(*(self.bounds or _around(ends)), bottom, TOP + 6)
        for tick in y_scale.ticks(5):
            yield _line(LEFT, y_scale(tick), WIDTH - RIGHT, y_scale(tick), "grid")
            yield _text(LEFT - 6, y_scale(tick) + 4, self._tick(tick), "tick end")
        for tick in x_scale.ticks(6, whole=True):
            yield _text(x_scale(tick), bottom + 16, f"{tick:g}", "tick middle")
        yield _text((LEFT + WIDTH) / 2, bottom + 31, self.x_label, "tick middle")
        for one in self.series:
            yield f'<g class="{_color(one.color)}">'
            for is_drawn, run in itertools.groupby(one.points, _finite):
                if not is_drawn:
                    continue
                path = " ".join(f"{x_scale(p.x or 0.0):.1f},{y_scale(p.value):.1f}" for p in run)
                yield f'<polyline class="line" points="{path}"/>'
            marked = [each for each in one.points if _finite(each)] if one.color != GREY else []
            for point in marked if len(marked) <= MOST_MARKS else []:
                x = x_scale(point.x or 0.0)
                if point.low is not None and point.high is not None:
                    yield _line(x, y_scale(point.low), x, y_scale(point.high), "bar")
                hint = f"{one.name} {self.x_label} {point.x:g}: {self._value(point)}".strip()
                yield _dot(x, y_scale(point.value), hint)
            yield "</g>"
        if self._has_names:
            x = 0.0
            for name, color in dict((o.name, o.color) for o in self.series if o.name).items():
                yield f'<g class="{_color(color)}">{_text(x, self.height - 4, name, "key")}</g>'
                x += 8 + 7 * len(name)


@dataclass(frozen=True)
class _Scale:
    """From values to pixels; values beyond its ends are drawn at the ends."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        part = (min(max(value, self.low), self.high) - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + part * (self.end - self.start), 1)

    def ticks(self, most: int, whole: bool = False) -> list[float]:
        """Round values between the ends, at most so many."""
        span = (self.high - self.low) or 1.0
        power = 10.0 ** math.floor(math.log10(span / most))
        steps = (power * factor for factor in (1, 2, 5, 10, 20, 50))
        step = next(each for each in steps if span / each <= most and (each >= 1 or not whole))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]


def _around(values: Sequence[float]) -> tuple[float, float]:
    """The ends of the values, with some room."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room * (low != 0), high + room * (high != 0)


def _ends(point: DrawnPoint) -> list[float]:
    return [each for each in point[1:] if each is not None and math.isfinite(each)]


def _finite(point: DrawnPoint) -> bool:
    return math.isfinite(point.value)


def _cut(name: str) -> str:
    most = int(WIDTH / LETTER)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _color(number: int) -> str:
    return "grey" if number == GREY else f"color{number % COLORS}"


def _text(x: float, y: float, text: str, css: str = "") -> str:
    shown = escape(printable(" ".join(text.split())))
    return f'<text x="{x:g}" y="{y:g}" class="{css}">{shown}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="{css}"/>'


def _dot(x: float, y: float, hint: str) -> str:
    title = escape(printable(hint))
    return f'<circle cx="{x:g}" cy="{y:g}" r="4"><title>{title}</title></circle>'


def together(panels: Sequence[Panel], columns: int = 3) -> str:
    """Return one SVG file of several charts, with its style inside."""
    columns = min(columns, len(panels))
    body, y = "", 0
    for start in range(0, len(panels), columns):
        row = panels[start : start + columns]
        for column, panel in enumerate(row):
            body += panel.svg(f'x="{column * (WIDTH + 24)}" y="{y}"')
        y += max(panel.height for panel in row) + 12
    width = columns * (WIDTH + 24) - 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="file" width="{width}" height="{y}" '
        f'viewBox="0 0 {width} {y}"><style>{STYLE}</style>{body}</svg>\n'
    )
