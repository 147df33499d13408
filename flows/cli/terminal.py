"""The only way of the commands to the terminal: what they print cannot control it.

Names, labels and texts come from stores, models and servers. Control characters are shown as
symbols, and square brackets are no markup of rich's.
"""

import builtins
import io
import json
import sys
import traceback
from collections.abc import Collection, Iterable, Sequence
from types import TracebackType
from typing import Any, TextIO

import rich.console
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table

from rlt_core.printable import printable
from rlt_core.secrets import clean_logs, masked


class Console(rich.console.Console):
    """Rich's console without markup and emoji codes; text cannot control the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        for text, style, control in super().render(*arguments, **options):
            yield Segment(text if control else printable(text), style, control)


def print(*values: object, file: TextIO | None = None) -> None:
    """Print a line that a person reads."""
    builtins.print(printable(masked(" ".join(map(str, values)))), file=file)


def print_json(value: object) -> None:
    """Print data as JSON."""
    print_data(json.dumps(value, indent=1))


def print_data(text: str) -> None:
    """Print a line of data: exactly, except on a terminal."""
    builtins.print(text, file=data_output())


def data_output() -> TextIO:
    """Return standard output for data: it writes exactly, except on a terminal."""
    return _Terminal() if sys.stdout.isatty() else sys.stdout


class _Terminal(io.StringIO):
    def write(self, text: str) -> int:
        return sys.stdout.write(printable(text.replace("\r\n", "\n")))

    def flush(self) -> None:
        sys.stdout.flush()


def clean_output() -> None:
    """Let log lines and the tracebacks of faults be clean as well, in this process, and the output
    UTF-8."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            print("".join(traceback.format_exception(kind, error, trace)).rstrip(), file=sys.stderr)

    clean_logs()
    sys.excepthook = show
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # else closed
            stream.reconfigure(encoding="utf-8")  # whatever the locale: data are exact


# ---------------------------------------------------------------- tables
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
