"""Tables for a terminal, a file or a pipe."""

import sys
from collections.abc import Collection, Sequence
from typing import Any, TextIO

from rich.measure import Measurement
from rich.table import Table

from flows.cli.terminal import Console
from rlt_core.printable import printable

UNLIMITED = 100_000
"""Characters per line where there is no terminal."""


def table_console(file: TextIO | None = None) -> Console:
    """Return a console as wide as the terminal. In a file or pipe lines are never cut."""
    file = file or sys.stdout
    return Console(file=file, width=None if file.isatty() else UNLIMITED)


def new_table(
    *columns: str, right: Collection[str] = (), whole: Collection[str] = (), **options: Any
) -> Table:
    """Return a table without borders; `right`: aligned to the right, `whole`: never wrapped."""
    table = Table(box=None, header_style="bold", pad_edge=False, **options)
    for name in columns:
        table.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=name in whole,
            overflow="ellipsis" if name in whole else "fold",
        )
    return table


def print_whole(console: Console, table: Table) -> None:
    """Print a table without cutting names or keys: a narrower terminal wraps its lines."""
    options = console.options.update(max_width=UNLIMITED)
    table.width = Measurement.get(console, options, table).maximum
    console.print(table, soft_wrap=True)


def some(names: Sequence[str], shown: int = 3) -> str:
    """Return names in a line: `a, b, c and 4 more`."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def line(text: str) -> str:
    """Return a text on one line, with symbols for its line breaks and tabs."""
    return printable(text.replace("\n", "⏎").replace("\t", "⇥"))
