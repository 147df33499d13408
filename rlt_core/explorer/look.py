"""How the explorer looks: its templates, style and script, numbers and bars."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlt_core.explorer import compare, heatmap, queries
from rlt_core.printable import printable

HERE = Path(__file__).parent


def number(value: Any) -> str:
    """Return a number with three digits after the point, with a real minus sign."""
    if value is None:
        return "-"
    text = f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
    return text.replace("-", "\u2212")


def signed(value: float) -> str:
    """Return `number` with its sign."""
    return number(value) if value < 0 else f"+{number(value)}"


def bar(value: float, low: float, high: float) -> Markup:
    """Return a bar from zero to a value, on an axis from low to high."""
    low, high = min(low, 0.0), max(high, 0.0)
    return _axis(low, high, (min(value, 0.0), max(value, 0.0), "minus" if value < 0 else "plus"))


def span(low: float, high: float, least: float, most: float) -> Markup:
    """Return the range from low to high, on an axis from least to most."""
    return _axis(least, most, (low, high, "range"), (low, low, "minus"), (high, high, "plus"))


def _axis(least: float, most: float, *marks: tuple[float, float, str]) -> Markup:
    """Return an axis with marks, each from, to and class; they are at least a line wide."""
    scale = 98 / (most - least) if most > least else 0.0
    drawn = Markup("").join(
        Markup('<rect class="{}" x="{:.2f}" y="{}" width="{:.2f}" height="{}"/>').format(
            kind, (low - least) * scale, *((2, width, 6) if kind == "range" else (0, width, 10))
        )
        for low, high, kind in marks
        for width in [max((high - low) * scale, 1.5)]
    )
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="axis" y="4.6" width="100" height=".8"/>{}</svg>'
    ).format(drawn)


@cache
def templates() -> Environment:
    """Return the pages' environment; every text is escaped."""
    found = Environment(
        loader=FileSystemLoader(HERE / "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters |= {"text": printable, "number": number, "signed": signed}
    found.globals |= {
        "bar": bar, "span": span, "heatmap": heatmap.heatmap, "legend": heatmap.legend,
        "channel_input": heatmap.channel_input, "CHANNELS": heatmap.CHANNELS,
        "CHOICES": compare.CHOICES, "RANGES": queries.RANGES, "BADGES": queries.BADGES,
        "differences": compare.differences,
    }  # fmt: skip
    return found


def style() -> str:
    """Return the style of all pages."""
    return (HERE / "explorer.css").read_text("utf-8") + heatmap.CSS


def script() -> str:
    """Return the script of all pages."""
    return (HERE / "explorer.js").read_text("utf-8")
