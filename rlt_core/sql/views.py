"""Every table of a store as SQL views, in a locked in-memory DuckDB.

    >>> connection = connect(Store("rlt-store"))
    >>> connection.sql("select rank, avg(reward) from scores group by rank order by rank")

The views are built from committed manifests, never from globs, and read the Parquet files in
place, on a local disk or S3. `run`, the key of the artifact that wrote a row, joins all views. The
reward's formula is available as macros (`rlt_core.sql.macros`).
"""

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from rlt_core.errors import UserError
from rlt_core.names import nearest
from rlt_core.sql import macros
from rlt_core.sql.checked_files import CheckedDataset
from rlt_core.sql.schemas import BUILT, TABLES, VIEWS
from rlt_core.store import Manifest, Store


def connect(store: Store, sql: str | None = None) -> duckdb.DuckDBPyConnection:
    """Return a connection with the macros and a view of every table over the committed artifacts.

    `sql`: the only text that will be run; views that it does not name stay empty. SQL cannot change
    the store: the database is in memory, and files, network, extensions and Python variables are
    disabled.
    """
    connection = duckdb.connect(config={"temp_directory": _spill_folder().name})
    macros.create(connection)
    refresh(connection, store, sql)
    connection.execute("set enable_external_access = false")
    connection.execute("set python_enable_replacements = false")
    connection.execute("set lock_configuration = true")
    return connection


@cache
def _spill_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a private folder, which is removed when this process exits."""
    return tempfile.TemporaryDirectory(prefix="rlt-duckdb-")


def refresh(connection: duckdb.DuckDBPyConnection, store: Store, sql: str | None = None) -> int:
    """Renew the views of `connect`; returns the number of committed artifacts.

    Tables that SQL has created on the connection are kept.
    """
    named = _named(sql)
    manifests = store.manifests()
    for table in TABLES:
        having = (one for one in manifests if table in named and table in one.tables)
        connection.register(table, dataset(store, table, having))
    for view in BUILT:
        rows = _rows(view, store, manifests) if view in named else ()
        connection.register(view, pa.Table.from_pylist(list(rows), VIEWS[view]))
    for macro, query in LOOK_UPS.items():
        name = macro.partition("(")[0]
        if name in named:
            entries = f"select map_from_entries(list({{'k': k, 'v': v}})) from ({query}) as t(k, v)"
            connection.execute(f"set variable {name} = ({entries})")
            connection.execute(f"create or replace temp macro {macro}")
    return len(manifests)


def _named(sql: str | None) -> set[str]:
    """Return the views and look-ups that a text can use; all if it may compose names itself."""
    look_ups = {"run_of": "refs", "input_of": "lineage"}
    every = {*VIEWS, *look_ups}
    words = every if sql is None else set(re.findall(r"\w+", sql.lower()))
    if words & {"query", "query_table"}:
        words = every
    return (words & every) | {view for macro, view in look_ups.items() if macro in words}


LOOK_UPS = {
    "run_of(name) as getvariable('run_of')[name]": "select name, run from refs",
    "input_of(run, input) as getvariable('input_of')[run || ' ' || input]": (
        "select run || ' ' || input, input_run from lineage"
    ),
}
"""Look-ups in `refs` and `lineage` that DuckDB evaluates before it reads, so that it opens no other
artifact's files; a join with those views would open all of them."""


# ---------------------------------------------------------------- building the views
def dataset(store: Store, table: str, manifests: Iterable[Manifest]) -> CheckedDataset:
    """Return the files of a table in these artifacts as one dataset, read when it is queried.

    `run` and `label` are in each fragment's partition expression: the scanner fills them in, and
    skips the files of other artifacts when a query filters on them. A scan raises UserError for a
    file that is not as committed.
    """
    entries = [
        (one, f"{store.data_path(one)}/{entry.path}", entry)
        for one in manifests
        for entry in one.files
        if entry.path in one.tables.get(table, ())
    ]
    file_system = store.files.arrow()
    file_format = ds.ParquetFileFormat(page_checksum_verification=True)
    run, label = ds.field("run"), ds.field("label")
    fragments = []
    for one, path, _ in entries:
        constants = run == one.ref.key
        if "label" not in TABLES[table].names:
            constants &= label == one.label
        fragments.append(
            file_format.make_fragment(path, file_system, partition_expression=constants)
        )
    made = CheckedDataset(fragments, VIEWS[table], file_format, file_system)
    return made.check(store, {path: entry for _, path, entry in entries})


def _rows(view: str, store: Store, manifests: Sequence[Manifest]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a view that is made from manifests."""
    if view == "refs":
        yield from ({"name": name, "run": ref.key} for name, ref in store.refs().items())
    stages = {one.ref.key: one.stage for one in manifests}
    for one in manifests if view == "lineage" else ():
        for name, ref in one.inputs.items():
            yield {
                "run": one.ref.key, "stage": one.stage, "input": name, "input_run": ref.key,
                "input_stage": stages.get(ref.key),
            }  # fmt: skip
    for one in manifests if view in ("artifacts", "costs") else ():
        yield {
            **vars(one), "run": one.ref.key, "kind": one.ref.kind, "started": one.started_at,
            "created": one.finished_at, "thread_seconds": one.seconds * one.threads,
            "bytes": one.bytes, "rows": one.rows, "metrics": json.dumps(one.metrics),
            "config": json.dumps(one.config),
        }  # fmt: skip


# ---------------------------------------------------------------- errors
@contextmanager
def sql_errors(sql: str) -> Iterator[None]:
    """Raise DuckDB's errors as UserError: its message and the nearest table or column."""
    try:
        yield
    except duckdb.Error as error:
        raise UserError(_explain(sql, str(error).strip())) from None


_NO_TABLE = re.compile(r"Table with name (\S+) does not exist")
_NO_COLUMN = re.compile(r'Referenced column "(.+?)" not found|not have a column named "(.+?)"')
_GUESS = re.compile(r"\n(Did you mean|Candidate (bindings|tables)).*")
_UNREADABLE = re.compile(
    r".*(?:reading the stream|exporting a stream from the object) registered as "
    r"'(\w+?)(?:_\d+)?' failed: (?:\w+: )?",
    re.DOTALL,
)


def _explain(sql: str, message: str) -> str:
    """Return DuckDB's message, with the nearest view or column instead of DuckDB's guesses."""
    if match := _NO_TABLE.search(message):
        hint = nearest(match[1], VIEWS)
    elif match := _NO_COLUMN.search(message):
        used = [name for name in VIEWS if re.search(rf"\b{name}\b", sql, re.IGNORECASE)]
        column = match[1] or match[2]
        owners = [name for name in used if column in VIEWS[name].names]
        hint = (
            f"{column} is a column of {', '.join(owners)}"
            if owners
            else (nearest(column, {each for name in used for each in VIEWS[name].names}))
        )
    elif match := _UNREADABLE.match(message):
        cause = message[match.end() :].partition(". Detail: Python exception")[0]
        return (
            f"{match[1]} cannot be read: {cause}\n`rlt artifacts verify` lists what is damaged; on "
            "S3 check the server, endpoint and credentials"
        )
    else:
        return message
    return f"{_GUESS.sub('', message)}\n{hint}"
