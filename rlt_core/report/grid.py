"""A table of a report as cells, so that the Markdown and the HTML page show the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from rlt_core.report.texts import NOTHING

Line = TypeVar("Line")


@dataclass(frozen=True)
class Cell:
    """What stands in a cell: our own number or words, text of unknown origin, keys as code."""

    text: str
    kind: Literal["number", "text", "keys"] = "number"

    @property
    def keys(self) -> list[str]:
        """The keys of a cell of keys."""
        return self.text.split()


@dataclass(frozen=True)
class Column(Generic[Line]):
    """A column of a table of lines."""

    header: str
    cell: Callable[[Line], Cell]
    needed: bool = True
    """Whether the column has anything to show."""


@dataclass(frozen=True)
class Grid:
    """A table."""

    header: list[str]
    rows: list[list[Cell]]


def grid(columns: Sequence[Column[Line]], lines: Sequence[Line]) -> Grid:
    """The columns that are needed."""
    shown = [column for column in columns if column.needed]
    return Grid(
        header=[column.header for column in shown],
        rows=[[column.cell(line) for column in shown] for line in lines],
    )


def text(value: str) -> Cell:
    """Text of unknown origin."""
    return Cell(value, "text")


def keys(values: Sequence[str]) -> Cell:
    """Keys of artifacts."""
    return Cell(" ".join(values), "keys") if values else Cell(NOTHING)
