"""The report of a run: tables, figures and sample texts from the artifacts it made.

`rlt_core.report.terminal` shows a finished report's numbers and imports neither numpy nor
matplotlib; what computes and draws is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlt_core.report.data import gather
    from rlt_core.report.render import render_report

__all__ = ["gather", "render_report"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    rooms = {"gather": "data", "render_report": "render"}
    if name not in rooms:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{rooms[name]}"), name)
