"""The only way of the commands to the terminal: what they print cannot control it.

Names, labels and texts come from stores, models and servers. Control characters are shown as
symbols, and square brackets are no markup of rich's.
"""

import builtins
import io
import sys
import traceback
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TextIO

import rich.console
from rich.segment import Segment

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
