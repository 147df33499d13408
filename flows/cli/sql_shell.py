"""The SQL shell: history, completion, and a few commands that begin with a dot."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from duckdb import DuckDBPyConnection
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.shortcuts import clear

from flows.cli.terminal import print
from rlt_core.errors import UserError
from rlt_core.names import nearest
from rlt_core.sql.schemas import MEANINGS, SQL_TYPES, VIEWS

COMMANDS = {
    ".tables": "list the tables",
    ".schema": "list the columns of all tables, or of one: `.schema TABLE`",
    ".refresh": "read the artifacts that were committed since the shell started",
    ".clear": "clear the screen",
    ".help": "show this list",
    ".quit": "leave (also .exit, Ctrl-D)",
}
"""A command may also be typed as shells have it: `quit`, `exit;`."""
WORD = re.compile(r"\\?\.?(tables|refresh|clear|help|quit|exit|q)\s*;?", re.IGNORECASE)


def shell(
    connection: DuckDBPyConnection, ask: Callable[[str], None], refresh: Callable[[], int]
) -> None:
    """Read statements until the end of input; mistakes are printed, not raised.

    `ask` answers a statement; `refresh` reads the store again and returns the number of artifacts.
    """
    session: PromptSession[str] = PromptSession(
        history=_history(), completer=completer(connection), complete_while_typing=False
    )
    print("DuckDB over the store. A statement ends with `;`; `help` lists the commands.")
    text = ""
    while True:
        try:
            line = session.prompt("…> " if text else "rlt> ").encode(errors="replace").decode()
            text = f"{text}\n{line}".strip()
            if word := WORD.fullmatch(text):
                text = f".{word[1].lower()}"
            if text in (".quit", ".exit", ".q"):
                return
            if text.startswith("."):
                statement, text = text, ""
                command(statement, refresh)
            elif text.endswith(";"):
                statement, text = text, ""
                ask(statement)
        except EOFError:
            return
        except UserError as error:
            print(error)
        except KeyboardInterrupt:
            text = ""


def _history() -> History:
    """Return the history of earlier shells; where no file can be written, that of this one."""
    file = Path(os.environ.get("XDG_STATE_HOME", "~/.local/state")).expanduser() / "rlt/sql_history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(file))


def command(text: str, refresh: Callable[[], int]) -> None:
    """Execute a dot command. Raises UserError for an unknown one."""
    name, _, argument = (part.strip() for part in text.partition(" "))
    if name not in COMMANDS:
        raise UserError(f"unknown command {name}; {nearest(name, COMMANDS)}")
    if argument and argument not in VIEWS:
        raise UserError(f"no table {argument}; {nearest(argument, VIEWS)}")
    if name == ".clear":
        clear()
    elif name == ".refresh":
        print(f"{refresh()} artifacts")
    elif name == ".tables":
        print("\n".join(VIEWS))
    elif name == ".help":
        print("\n".join(f"{command:<9} {what}" for command, what in COMMANDS.items()))
    for table in ([argument] if argument else VIEWS) if name == ".schema" else ():
        print(table)
        for column in VIEWS[table]:
            type = SQL_TYPES[column.type]
            print(f"  {column.name}  {type}  {MEANINGS[table][column.name]}")


def completer(connection: DuckDBPyConnection) -> WordCompleter:
    """Complete commands, tables, their columns (`reward`, `scores.reward`) and SQL's own words."""
    words = {*COMMANDS, *VIEWS}
    for table, schema in VIEWS.items():
        words |= {*schema.names, *(f"{table}.{column}" for column in schema.names)}
    sql = "select keyword_name from duckdb_keywords() union select function_name " \
        "from duckdb_functions() where function_type = 'aggregate' or not internal"  # fmt: skip
    words |= {word for (word,) in connection.execute(sql).fetchall()}
    return WordCompleter(sorted(words), pattern=re.compile(r"[\w.]+"), ignore_case=True)
