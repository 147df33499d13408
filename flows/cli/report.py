"""`rlt report`: what a run has shown, on one screen; of a run that failed or was stopped, too."""

import re
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from flows.cli.options import DEFAULT_STORE, StoreOption, existing_store
from flows.cli.terminal import Console, new_table, print, table_console
from rlt_core.errors import UserError
from rlt_core.report.stored import latest_report


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
    """Print a report's answer, alarms and first table; on a terminal one screen of it, for which
    the text is cut first."""
    text = (folder / "report.md").read_text("utf-8")
    first = re.search(r"^((?:\|.*\n?)+)(?:\n(All rows: .*))?", text, re.MULTILINE)
    before, rows = (text[: first.start()], first[1].splitlines()) if first else (text, ["", ""])
    cells = [[plain(cell) for cell in re.split(r"(?<!\\) ?\| ?", row)[1:-1]] for row in rows]
    names, _, *lines = cells
    table = new_table(*names, right=names[1:])
    for line in lines:
        table.add_row(*line)
    with console.capture() as captured:
        for paragraph in before.splitlines():
            if paragraph and not paragraph.startswith("!["):
                bold = paragraph.startswith(("#", "**Answer"))
                console.print(plain(paragraph), style="bold" if bold else "")
    shown = captured.get().splitlines()
    with console.capture() as captured:
        console.print(table)
        if first and first[2]:
            console.print(plain(first[2]))
    scores = captured.get().splitlines()
    room = console.height - 4 if console.is_terminal else len(shown) + len(scores)
    if (more := len(shown) + len(scores) - room) > 0:
        scores = scores[: max(room * 2 // 5, room - len(shown))]
        shown[room - len(scores) :] = [f"… {more} more lines: rlt report --full"]
    for one in (*shown, *scores):
        console.print(Text.from_ansi(one), soft_wrap=True)


def plain(text: str) -> str:
    """Text without emphasis and code marks and without the marks that make others inert."""
    return re.sub(r"^[#>]+ |\*\*|`|\\([\\`*_{}\[\]<>#|!~&$])", lambda found: found[1] or "", text)


def near(path: Path) -> Path:
    """Return a path relative to the working directory, if it is below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
