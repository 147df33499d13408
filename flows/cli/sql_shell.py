"""The SQL shell: history, completion, and a few commands that begin with a dot."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from duckdb import DuckDBPyConnection
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory
from prompt_toolkit.lexers import PygmentsLexer
from pygments.lexers.sql import SqlLexer

from rlt_core.errors import UserError
from rlt_core.sql.views import VIEWS

COMMANDS = {
    ".tables": "the tables",
    ".schema": "the columns of all tables, or `.schema TABLE`",
    ".refresh": "read what was committed since the shell began",
    ".help": "this",
    ".quit": "leave (or Ctrl-D)",
}
WORD = re.compile(r"[\w.]+$")


def shell(
    connection: DuckDBPyConnection, ask: Callable[[str], None], refresh: Callable[[], int]
) -> None:
    """Read statements until the end; a mistake is shown, not raised.

    `ask` answers a statement, `refresh` reads the store again and returns its artifacts' number.
    """
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(_history())),
        completer=SqlCompleter(_sql_words(connection)),
        complete_while_typing=False,
        lexer=PygmentsLexer(SqlLexer),
        multiline=Condition(lambda: unfinished(get_app().current_buffer.text)),
        prompt_continuation=_continuation,
    )
    print("SQL over the store (DuckDB). A statement ends with `;`. `.help` shows more.")
    while True:
        try:
            text = session.prompt("rlt> ").strip()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if text == ".quit":
            return
        try:
            if text == ".refresh":
                print(f"{refresh()} artifacts")
            elif text.startswith("."):
                print(command(text))
            elif text:
                ask(text)
        except UserError as error:
            print(error)
        except KeyboardInterrupt:
            connection.interrupt()


def _continuation(width: int, line: int, wrapped: bool | int) -> StyleAndTextTuples:
    return [("", "…> ".rjust(width))]


def unfinished(text: str) -> bool:
    """Whether Enter begins another line: SQL without its `;`."""
    text = text.strip()
    return bool(text) and not text.startswith(".") and not text.endswith(";")


def _history() -> Path:
    """The history file, in the XDG state folder."""
    home = Path(os.environ.get("XDG_STATE_HOME", "~/.local/state")).expanduser()
    folder = home / "rlt"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "sql_history"


def command(text: str) -> str:
    """The answer to a dot command about the tables. Raises UserError for an unknown one."""
    name, _, argument = text.partition(" ")
    argument = argument.strip()
    if name == ".tables":
        return "\n".join(VIEWS)
    if name == ".help":
        return "\n".join(f"{command:<9} {what}" for command, what in COMMANDS.items())
    if name != ".schema":
        raise UserError(f"unknown command {name}; there are: {', '.join(COMMANDS)}")
    if argument and argument not in VIEWS:
        raise UserError(f"no table {argument}; there are: {', '.join(VIEWS)}")
    tables = [argument] if argument else list(VIEWS)
    return "\n".join(
        line
        for table in tables
        for line in (table, *(f"  {field.name}  {field.type}" for field in VIEWS[table]))
    )


def _sql_words(connection: DuckDBPyConnection) -> list[str]:
    """DuckDB's keywords and aggregate functions and our own functions, in alphabetical order."""
    words = connection.execute(
        "select keyword_name from duckdb_keywords() union select function_name from "
        "duckdb_functions() where function_type = 'aggregate' "
        "or function_type = 'macro' and not internal order by 1"
    )
    return [word for (word,) in words.fetchall()]


class SqlCompleter(Completer):
    """Dot commands; columns of the tables in the text; tables; SQL's own words."""

    def __init__(self, sql_words: Iterable[str]) -> None:
        self._sql_words = list(sql_words)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent | None
    ) -> Iterable[Completion]:
        """Words that go on with what stands before the cursor."""
        match = WORD.search(document.text_before_cursor)
        word = match[0] if match else ""
        for candidate, what in self._candidates(document.text, word):
            if candidate.startswith(word.lower()) and candidate != word:
                yield Completion(candidate, start_position=-len(word), display_meta=what)

    def _candidates(self, text: str, word: str) -> Iterable[tuple[str, str]]:
        if text.lstrip().startswith("."):
            yield from COMMANDS.items()
        table, dot, _ = word.partition(".")
        if dot:
            schema = VIEWS.get(table)
            yield from ((f"{table}.{field.name}", str(field.type)) for field in schema or [])
            return
        mentioned = [name for name in VIEWS if re.search(rf"\b{name}\b", text)]
        columns = {
            field.name: str(field.type) for name in mentioned or VIEWS for field in VIEWS[name]
        }
        yield from columns.items()
        yield from ((name, "table") for name in VIEWS)
        yield from ((word, "") for word in self._sql_words)
