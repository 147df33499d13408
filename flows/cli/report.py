"""`rlt report`: what a run has shown, on one screen; of a run that failed or was stopped, too."""

import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from flows.cli.options import DEFAULT_STORE, StoreOption, existing_store
from flows.cli.tables import new_table, table_console
from flows.cli.terminal import Console, print
from rlt_core.errors import UserError
from rlt_core.report.latest import latest_report

ALARMS = 3
"""Alarms that one screen shows."""


def report(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Experiment, e.g. table-1; by default the newest."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="Profile; by default the newest.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    full: Annotated[bool, typer.Option("--full", help="Print all of it, as Markdown.")] = False,
    in_browser: Annotated[
        bool, typer.Option("--open", help="Open the page with its figures in a browser.")
    ] = False,
    path: Annotated[bool, typer.Option("--path", help="Print the report's path only.")] = False,
) -> None:
    """Show the latest report on one screen; of a run that was stopped or failed, what exists."""
    folder = latest_report(existing_store(store), name, profile)
    page = folder / "report.html"
    if path:
        print(folder / "report.md")
    elif in_browser:
        print(page)
        if not page.is_file():
            raise UserError(f"{folder} was made by a version without pages; --full prints it")
        if not webbrowser.open(page.as_uri()):
            raise UserError("no browser was found here; open the file above in one")
    elif not full:
        show(table_console(), folder)
        print(f"--full prints all of it, --open shows it with figures:\n{near(page)}")
    elif sys.stdout.isatty():
        from rich.markdown import Markdown  # slow to import

        text = (folder / "report.md").read_text("utf-8")
        Console().print(Markdown(text, hyperlinks=False))
    else:
        print((folder / "report.md").read_text("utf-8"))


def show(console: Console, folder: Path) -> None:
    """Print a report's answer, alarms and first table; on a terminal one screen of it."""
    from rlt_core.report.terminal import opening

    found = opening(folder)
    names, *rows = found.table or [[]]
    table = new_table(*names, right=names[1:])
    for row in rows:
        table.add_row(*row)
    with console.capture() as captured:
        console.print(f"\n{found.title}", style="bold")
        for note in found.notes:
            console.print(note, style="dim", soft_wrap=True)
        for line in found.answer:
            console.print(line, style="bold" if line.startswith("Answer.") else "", soft_wrap=True)
        alarms, more = found.alarms[:ALARMS], len(found.alarms) - ALARMS
        for line in (*(f"alarm: {alarm}" for alarm in alarms), f"and {more} more alarms"):
            if more > 0 or line.startswith("alarm: "):
                console.print(line, style="red", no_wrap=True, overflow="ellipsis")
        if rows:
            console.print(table)
    lines = captured.get().splitlines()
    room = console.height - 4 if console.is_terminal else len(lines)
    if len(lines) > room:
        lines[room:] = [f"… {len(lines) - room} more lines: rlt report --full"]
    for line in lines:
        console.print(Text.from_ansi(line), soft_wrap=True)


def near(path: Path) -> Path:
    """Return a path relative to the working directory, if it is below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
