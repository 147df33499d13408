"""How the explorer looks: its templates, style and script, numbers; questions as one file
that needs nothing else."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlt_core.environment import disk_space
from rlt_core.explorer import compare, heatmap, queries
from rlt_core.explorer.queries import Library
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


@cache
def templates() -> Environment:
    """Return the pages' environment; every text is escaped."""
    found = Environment(
        loader=FileSystemLoader(HERE / "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters |= {"text": printable, "number": number, "signed": signed}
    found.globals |= {
        "heatmap": heatmap.heatmap, "legend": heatmap.legend, "CHANNELS": heatmap.CHANNELS,
        "channel_input": heatmap.channel_input,
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


def export(library: Library, questions: Sequence[str], file: Path) -> None:
    """Write questions with all their explanations: the best and the worst side by side, why the
    reward differs, and every token's values. Raises UserError for one that is not there."""
    found = []
    for name in questions:
        comparison = compare.compared(
            library, library.of_question(name, None, None), {}, None, None
        )
        shown = [one.row for one in comparison["sides"]]
        others = [
            compare.side(library, row, {}, comparison["question"])
            for row in comparison["rows"]
            if row not in shown
        ]
        found.append((comparison, others))
    inline = {"style": style(), "script": script()}
    policy = "; ".join(
        f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for kind, text in inline.items()
    )
    page = templates().get_template("export.html")
    text = page.render(
        found=found, policy=policy, store=str(library.store),
        **{name: Markup(text) for name, text in inline.items()},
    )  # fmt: skip
    with disk_space(file.parent):
        file.write_text(text, encoding="utf-8")
