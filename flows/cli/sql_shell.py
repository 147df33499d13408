"""The SQL shell: history, completion, and a few commands that begin with a dot."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from duckdb import DuckDBPyConnection
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from prompt_toolkit.shortcuts import clear
from pygments.lexers.sql import SqlLexer

from flows.cli.terminal import print
from rlt_core.errors import UserError
from rlt_core.names import nearest
from rlt_core.sql.schemas import MEANINGS, VIEWS

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
    keys = KeyBindings()
    # `multiline` is no condition: the layout depends on it, and must not change during a search.
    session: PromptSession[str] = PromptSession(
        history=_history(),
        completer=completer(connection),
        complete_while_typing=False,
        key_bindings=keys,
        lexer=PygmentsLexer(SqlLexer),
        multiline=True,
        prompt_continuation=lambda width, line, wrapped: "…> ".rjust(width),
    )
    is_whole = Condition(lambda: not unfinished(session.default_buffer.text))

    @keys.add("enter", filter=has_focus(DEFAULT_BUFFER) & is_whole)
    def answer(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    print("DuckDB over the store. A statement ends with `;`; `help` lists the commands.")
    while True:
        try:
            text = session.prompt("rlt> ").strip().encode(errors="replace").decode()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if word := WORD.fullmatch(text):
            text = f".{word[1].lower()}"
        try:
            if text in (".quit", ".exit", ".q"):
                return
            if text == ".clear":
                clear()
            elif text == ".refresh":
                print(f"{refresh()} artifacts")
            elif text.startswith("."):
                print(command(text))
            elif text:
                ask(text)
        except UserError as error:
            print(error)
        except KeyboardInterrupt:
            print("interrupted")


def _history() -> History:
    """Return the history of earlier shells; where no file can be written, that of this one."""
    file = Path(os.environ.get("XDG_STATE_HOME", "~/.local/state")).expanduser() / "rlt/sql_history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(file))


def unfinished(text: str) -> bool:
    """Return whether Enter begins another line: SQL without its `;`."""
    text = text.strip()
    return bool(text) and not (text.endswith(";") or text.startswith(".") or WORD.fullmatch(text))


def command(text: str) -> str:
    """Return the answer to a dot command about the tables. Raises UserError for an unknown one."""
    name, _, argument = text.partition(" ")
    argument = argument.strip()
    if name == ".tables":
        return "\n".join(VIEWS)
    if name == ".help":
        return "\n".join(f"{command:<9} {what}" for command, what in COMMANDS.items())
    if name != ".schema":
        raise UserError(f"unknown command {name}; {nearest(name, COMMANDS)}")
    if argument and argument not in VIEWS:
        raise UserError(f"no table {argument}; {nearest(argument, VIEWS)}")
    lines: list[str] = []
    for table in [argument] if argument else VIEWS:
        columns = (f"  {f.name}  {f.type}  {MEANINGS[table][f.name]}" for f in VIEWS[table])
        lines += [table, *columns]
    return "\n".join(lines)


def completer(connection: DuckDBPyConnection) -> WordCompleter:
    """Complete commands, tables, their columns (`reward`, `scores.reward`) and SQL's own words."""
    tables_of: dict[str, list[str]] = {}
    for table, schema in VIEWS.items():
        for column in schema.names:
            tables_of.setdefault(column, []).append(table)
            tables_of[f"{table}.{column}"] = []
    known = {column: ", ".join(tables) for column, tables in tables_of.items()}
    known |= COMMANDS | dict.fromkeys(VIEWS, "table")
    words = connection.execute(
        "select keyword_name from duckdb_keywords() union select function_name from "
        "duckdb_functions() where function_type = 'aggregate' "
        "or function_type = 'macro' and not internal order by 1"
    )
    sql_words = [word for (word,) in words.fetchall() if word not in known]
    return WordCompleter(
        [*known, *sql_words], meta_dict=known, pattern=re.compile(r"[\w.]+"), ignore_case=True
    )
