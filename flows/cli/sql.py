"""`rlt sql`: query the store's tables, or start a shell."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import DEFAULT_STORE, ExistingStore, check_output
from flows.cli.terminal import data_output, print, some
from rlt_core.errors import UserError
from rlt_core.names import nearest

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FORMATS = ("table", "csv", "json", "jsonl", "parquet")


def sql(
    statement: Annotated[
        str | None,
        typer.Argument(
            help='SQL, e.g. "select * from eval_scores"; by default standard input or a shell.'
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            help="table, csv, json, jsonl or parquet; by default the suffix of --output, or table.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the result.")
    ] = None,
    store: ExistingStore = DEFAULT_STORE,
    safe_csv: Annotated[
        bool,
        typer.Option("--safe-csv", help="CSV for a spreadsheet: no text is taken for a formula."),
    ] = False,
) -> None:
    """Query the store's tables with SQL (DuckDB).

    Tables: questions, traces, scores, eval_samples, eval_scores, train_steps, rollouts,
    rank_scores, dropped, eval_overlaps, artifacts, costs, lineage, refs.
    """
    chosen = _format(format, output)
    if safe_csv:
        if chosen != "csv":
            raise UserError("--safe-csv needs --format csv, or an --output that ends in .csv")
        chosen = "safe csv"
    if statement is None and not sys.stdin.isatty():
        statement = sys.stdin.read()
    if output is not None:
        if not (statement and statement.strip()):
            raise UserError("--output needs the SQL as an argument or on standard input")
        check_output(output, suffixes=())
    skip_pandas()
    from rlt_core.sql.views import connect, refresh

    with connect(store, statement) as connection:
        if statement is not None:
            interruptible(connection, lambda: ask(connection, statement, chosen, output))
        else:
            from flows.cli.sql_shell import shell

            signal.signal(signal.SIGINT, signal.default_int_handler)  # it ends a query only
            shell(
                connection,
                ask=lambda text: interruptible(connection, lambda: ask(connection, text, chosen)),
                refresh=lambda: refresh(connection, store),
            )


def interruptible(connection: DuckDBPyConnection, work: Callable[[], None]) -> None:
    """Do work in a thread, so that Ctrl-C is heard while DuckDB computes: it ends the query, and
    the handler's exception is raised here."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            future.result()
        except (KeyboardInterrupt, SystemExit):
            while not future.done():  # again: the query may just begin
                connection.interrupt()
                wait([future], timeout=0.1)
            raise


def skip_pandas() -> None:
    """Keep pyarrow from importing pandas, which takes 1 s and is not needed here."""
    sys.meta_path.insert(0, _NoPandas())


class _NoPandas:
    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == "pandas":
            raise ImportError("not needed by this command")


def _format(name: str | None, output: Path | None) -> str:
    """Return the format asked for, or by the file's suffix. Raises UserError for an unknown one."""
    chosen = name or (output.suffix[1:] if output and output.suffix else "table")
    if chosen not in FORMATS:
        raise UserError(f"unknown format {chosen!r}; {nearest(chosen, FORMATS)}")
    if chosen == "parquet" and output is None:
        raise UserError("--format parquet needs --output FILE")
    return chosen


def ask(connection: DuckDBPyConnection, text: str, format: str, output: Path | None = None) -> None:
    """Run the statements of a text in order and show each result.

    Raises UserError for SQL that DuckDB refuses and for a file that cannot be written.
    """
    from flows.cli.sql_output import write, write_text
    from rlt_core.sql.views import sql_errors

    with sql_errors(text):
        statements = [one.query for one in connection.extract_statements(text)]
    if output is not None and len(statements) != 1:
        raise UserError(f"--output takes one statement, not {len(statements)}")
    for statement in statements:
        with sql_errors(statement):
            relation = connection.sql(statement)
            if relation is None:
                print("done", file=sys.stderr)
            elif output is None:
                write_text(relation, format, data_output() if format != "table" else sys.stdout)
            else:
                write(relation, format, output)
            if note := mixture(connection, statement):
                print(note, file=sys.stderr)


AGGREGATE = re.compile(r"\b(avg|mean|sum|count|min|max|median|mode|stddev\w*|quantile\w*)\s*\(")
MIXED = (
    "traces", "scores", "eval_samples", "eval_scores", "train_steps", "rollouts", "rank_scores",
)  # fmt: skip


def mixture(connection: DuckDBPyConnection, statement: str) -> str | None:
    """Return a note on an aggregate over rows of several artifacts, which a statement that names
    neither `run` nor `label` mixes."""
    words = set(re.findall(r"\w+", statement.lower()))
    if words & {"run", "label"} or not AGGREGATE.search(statement.lower()):
        return None
    for table in filter(words.__contains__, MIXED):
        query = f"select label, count(distinct run) from {table} group by label order by label"
        found = connection.sql(query).fetchall()
        if (runs := sum(count for _, count in found)) > 1:
            labels = some([label for label, _ in found])
            return (
                f"note: {table} has rows of {runs} artifacts ({labels}), and this aggregates "
                "over all of them: group by label, or where label = '…' (run: one artifact)"
            )
    return None
