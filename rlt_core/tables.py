"""Every table of a store as SQL views, in a locked in-memory DuckDB.

    >>> connection = connect(Store("rlt-store"))
    >>> connection.sql("select rank, avg(reward) from scores group by rank order by rank")

The views are built from committed manifests, never from globs, and read the Parquet files where
they lie, local or S3. `run` is the key of the artifact that wrote a row and joins everything. The
reward's formula is there as macros (`rlt_core.sql_macros`).
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow.fs import FileSystem

from rlt_core import sql_macros
from rlt_core.errors import UserError
from rlt_core.schemas import TABLES
from rlt_core.store import Manifest, Store
from rlt_core.store.index import Select, tables_of

RUN = pa.field("run", pa.string())
LABEL = pa.field("label", pa.string())

ARTIFACTS = pa.schema(
    {
        "run": pa.string(),
        "kind": pa.string(),
        "stage": pa.string(),
        "stage_version": pa.int32(),
        "label": pa.string(),
        "profile": pa.string(),
        "seed": pa.int32(),
        "created": pa.timestamp("ms"),  # UTC
        "seconds": pa.float64(),
        "gpu_seconds": pa.float64(),
        "device": pa.string(),
        "bytes": pa.int64(),
        "rows": pa.int64(),
        "metrics": pa.string(),  # JSON: metrics->>'reward'
        "config": pa.string(),  # JSON
    }
)
"""One row a committed artifact."""

COSTS = pa.schema(
    {
        "run": pa.string(),
        "stage": pa.string(),
        "label": pa.string(),
        "profile": pa.string(),
        "seed": pa.int32(),
        "started": pa.timestamp("ms"),  # UTC
        "created": pa.timestamp("ms"),  # UTC
        "seconds": pa.float64(),
        "gpu_seconds": pa.float64(),
        "thread_seconds": pa.float64(),  # seconds times threads: at most these CPU-seconds
        "threads": pa.int32(),
        "device": pa.string(),
        "bytes": pa.int64(),
    }
)
"""What each artifact took to make, one row an artifact."""

LINEAGE = pa.schema(
    {
        "run": pa.string(),
        "stage": pa.string(),
        "input": pa.string(),  # the name under which it is read
        "input_run": pa.string(),
        "input_stage": pa.string(),  # null when the input is no longer in the store
    }
)
"""One row an artifact and an artifact that it read."""

REFS = pa.schema({"name": pa.string(), "run": pa.string()})
"""What a human name, e.g. `tiny/teacher-grpo@0`, stands for now."""


BUILT: dict[str, pa.Schema] = {
    "artifacts": ARTIFACTS,
    "costs": COSTS,
    "lineage": LINEAGE,
    "refs": REFS,
}
"""Views made from manifests and names; the others are made from files."""


def view_schema(table: str) -> pa.Schema:
    """The columns of the view of a table: `run`, `label` if the table lacks it, its own."""
    schema = TABLES[table]
    return pa.schema([RUN, *([] if "label" in schema.names else [LABEL]), *schema])


VIEWS: dict[str, pa.Schema] = {name: view_schema(name) for name in TABLES} | BUILT
"""View name -> columns: all that SQL can name."""


def connect(store: Store, sql: str | None = None) -> duckdb.DuckDBPyConnection:
    """Views of every table over what is committed now, typed and empty where nothing is; macros.

    `sql`: all that the connection will be asked; the views that it does not name stay empty. The
    connection holds nothing that could be written back: it is in memory, and files, network,
    extensions and Python variables are out of reach of its SQL.
    """
    spill = Path(tempfile.gettempdir()) / f"rlt-duckdb-{os.getuid()}"
    connection = duckdb.connect(config={"temp_directory": str(spill)})
    sql_macros.create(connection)
    refresh(connection, store, sql)
    connection.execute("set enable_external_access = false")
    connection.execute("set python_enable_replacements = false")
    connection.execute("set lock_configuration = true")
    return connection


def refresh(connection: duckdb.DuckDBPyConnection, store: Store, sql: str | None = None) -> int:
    """Point the views of `connect` at what is committed now; returns the number of artifacts.

    What SQL itself has made on the connection stays.
    """
    named = _named(sql)
    tables = [table for table in TABLES if table in named]
    runs, facts, inputs, *files = store.index.look(
        Select("run"),
        Select(FACTS, "true" if named & {"artifacts", "costs"} else "false"),
        Select("run, stage, inputs", "true" if "lineage" in named else "false"),
        *(Select(FILES, "instr(tables, ?)", (f'"{table}":',)) for table in tables),
    )
    of_table = dict(zip(tables, files, strict=True))
    for table in TABLES:
        sources = (
            Source(
                run, label, f"artifacts/{kind}/{run}/{attempt}", tuple(json.loads(by_name)[table])
            )
            for run, label, kind, attempt, by_name in of_table.get(table, [])
        )
        connection.register(table, _dataset(store, table, sources))
    columns = _columns(facts)
    refs = store.refs() if "refs" in named else {}
    built = {
        "artifacts": _table(ARTIFACTS, columns if "artifacts" in named else {}),
        "costs": _table(COSTS, columns if "costs" in named else {}),
        "lineage": _table(LINEAGE, _lineage(inputs)),
        "refs": _table(REFS, {"name": list(refs), "run": [ref.key for ref in refs.values()]}),
    }
    for view, made in built.items():
        connection.register(view, made)
    for macro, query in LOOK_UPS.items():
        name = macro.partition("(")[0]
        if name in named:
            entries = f"select map_from_entries(list({{'k': k, 'v': v}})) from ({query}) as t(k, v)"
            connection.execute(f"set variable {name} = ({entries})")
            connection.execute(f"create or replace temp macro {macro}")
    return len(runs)


def _named(sql: str | None) -> set[str]:
    """The views and look-ups that a text can reach; all if it may put names together itself."""
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
"""Look-ups in `refs` and `lineage` that DuckDB works out before it reads, so that the files of
other artifacts stay shut; a join with those views would open them all."""


# ---------------------------------------------------------------- building the views
FACTS = (
    "run, kind, stage, stage_version, label, profile, seed, started, created, seconds, "
    "gpu_seconds, threads, device, bytes, rows, metrics, config"
)
FILES = "run, label, kind, attempt, tables"
"""Columns of the index."""


class Source(NamedTuple):
    """Where an artifact has a table."""

    run: str
    label: str
    folder: str
    """Relative to the store's root."""
    files: tuple[str, ...]


def dataset(store: Store, table: str, manifests: Iterable[Manifest]) -> ds.FileSystemDataset:
    """The files of a table in these artifacts as one dataset, read only when it is queried."""
    return _dataset(
        store,
        table,
        (
            Source(one.ref.key, one.label, store.folder(one), tuple(tables_of(one).get(table, [])))
            for one in manifests
        ),
    )


def _dataset(store: Store, table: str, sources: Iterable[Source]) -> ds.FileSystemDataset:
    """`run` and `label` stand in each fragment's partition expression: the scanner fills them in,
    and skips the files of other artifacts when a query filters on them."""
    file_format, file_system = ds.ParquetFileFormat(), _file_system(store)
    run, label = ds.field("run"), ds.field("label")
    fragments = []
    for source in sources:
        constants = run == source.run
        if "label" not in TABLES[table].names:
            constants &= label == source.label
        fragments += [
            file_format.make_fragment(
                store.files.full(f"{source.folder}/{name}"), file_system,
                partition_expression=constants,
            )
            for name in source.files
        ]  # fmt: skip
    return ds.FileSystemDataset(fragments, VIEWS[table], file_format, file_system)


def _file_system(store: Store) -> FileSystem:
    """pyarrow's own file system: several times as fast as DuckDB or pyarrow through fsspec."""
    file_system: FileSystem = store.files.arrow()
    return file_system


def _columns(rows: list[tuple[Any, ...]]) -> dict[str, list[Any]]:
    """The columns of `FACTS` by name, with what follows from them."""
    names = FACTS.split(", ")
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in names]
    found = dict(zip(names, columns, strict=True))
    pairs = zip(found["seconds"], found["threads"], strict=True)
    return found | {"thread_seconds": [seconds * threads for seconds, threads in pairs]}


def _table(schema: pa.Schema, columns: Mapping[str, list[Any]]) -> pa.Table:
    return pa.table([pa.array(columns.get(f.name, []), f.type) for f in schema], schema=schema)


def _lineage(rows: list[tuple[Any, ...]]) -> dict[str, list[Any]]:
    stages = {run: stage for run, stage, _ in rows}
    read = [
        (run, stage, name, key, stages.get(key))
        for run, stage, inputs in rows
        for name, key in json.loads(inputs).items()
    ]
    columns = [list(column) for column in zip(*read, strict=True)] or [[] for _ in LINEAGE]
    return dict(zip(LINEAGE.names, columns, strict=True))


# ---------------------------------------------------------------- asking
@contextmanager
def sql_errors(sql: str) -> Iterator[None]:
    """Turn DuckDB's errors into UserError: its message and the nearest table or column."""
    try:
        yield
    except duckdb.Error as error:
        raise UserError(_explain(sql, str(error).strip())) from None


_NO_TABLE = re.compile(r"Table with name (\S+) does not exist")
_NO_COLUMN = re.compile(r'Referenced column "(.+?)" not found|not have a column named "(.+?)"')
_GUESS = re.compile(r"\n(Did you mean|Candidate (bindings|tables)).*")
_UNREADABLE = re.compile(
    r".*reading the stream registered as '(\w+)' failed: (?:\w+: )?", re.DOTALL
)


def _explain(sql: str, message: str) -> str:
    """DuckDB's message, with what the views offer in place of DuckDB's own guesses."""
    if match := _NO_TABLE.search(message):
        hint = _nearest("table", match[1], list(VIEWS))
    elif match := _NO_COLUMN.search(message):
        mentioned = [name for name in VIEWS if re.search(rf"\b{name}\b", sql, re.IGNORECASE)]
        columns = {column for name in mentioned for column in VIEWS[name].names}
        hint = _nearest("column", match[1] or match[2], sorted(columns))
    elif match := _UNREADABLE.match(message):
        cause = message[match.end() :].partition(". Detail: Python exception")[0]
        hint = (
            "S3 did not give the file: does its server run, do endpoint and credentials fit?"
            if "AWS Error" in cause
            else "`rlt artifacts verify` lists what is damaged"
        )
        return f"{match[1]} cannot be read: {cause}\n{hint}"
    else:
        return message
    return f"{_GUESS.sub('', message)}\n{hint}"


def _nearest(what: str, name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"nearest {what}: {close[0]}" if close else f"{what}s: {', '.join(known)}"
