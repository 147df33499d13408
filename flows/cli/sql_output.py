"""Results of SQL as a table, CSV, JSON, JSON Lines or Parquet, streamed."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
from duckdb import DuckDBPyRelation
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flows.cli.progress import table_console
from rlt_core.errors import UserError
from rlt_core.printable import printable

TABLE_ROWS = 200
"""Rows that a table on the terminal shows."""
CELL_CHARACTERS = 100
"""Characters that a cell of it shows."""
BATCH_ROWS = 10_000
NUMERIC = re.compile(r"(DOUBLE|FLOAT|DECIMAL\(.*?\)|U?[A-Z]*INT(EGER)?)$")


def show(relation: DuckDBPyRelation, format: str) -> None:
    """Print a result."""
    _write_text(relation, format, sys.stdout)


def write(relation: DuckDBPyRelation, format: str, output: Path) -> None:
    """Write a result to a file, whole or not at all. Raises UserError if it cannot be written."""
    part = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        try:
            if format == "parquet":
                _write_parquet(relation, part)
            else:
                with part.open("w", encoding="utf-8", newline="") as file:
                    _write_text(relation, format, file)
            os.replace(part, output)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: {error.strerror}") from None


def _write_parquet(relation: DuckDBPyRelation, path: Path) -> None:
    import pyarrow.parquet as pq

    reader = relation.to_arrow_reader(BATCH_ROWS)
    with pq.ParquetWriter(path, reader.schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch)


def _write_text(relation: DuckDBPyRelation, format: str, file: TextIO) -> None:
    if format == "csv":
        _write_csv(relation.to_arrow_reader(BATCH_ROWS), file)
    elif format == "json":
        _write_json(relation.to_arrow_reader(BATCH_ROWS), file)
    elif format == "jsonl":
        _write_jsonl(relation.to_arrow_reader(BATCH_ROWS), file)
    else:
        _print_table(table_console(file), relation)


def _write_csv(reader: pa.RecordBatchReader, file: TextIO) -> None:
    """RFC 4180; lists and structs as JSON, null as an empty field."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(reader.schema.names)
    for batch in reader:
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            writer.writerow([_plain(v) if isinstance(v, list | dict) else v for v in row])


def _write_json(reader: pa.RecordBatchReader, file: TextIO) -> None:
    """An array of objects, one a line; NaN and infinities, which JSON lacks, as null."""
    first = True
    for batch in reader:
        for row in batch.to_pylist():
            file.write("[\n" if first else ",\n")
            file.write(_plain(row))
            first = False
    file.write("[]\n" if first else "\n]\n")


def _write_jsonl(reader: pa.RecordBatchReader, file: TextIO) -> None:
    """An object a line and nothing else, as trainers read it."""
    for batch in reader:
        for row in batch.to_pylist():
            file.write(f"{_plain(row)}\n")


def _plain(value: Any) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return value


def _print_table(console: Console, relation: DuckDBPyRelation) -> None:
    """The first rows: a table, or one block a row where its header is wider than the terminal."""
    rows = relation.limit(TABLE_ROWS + 1).fetchall()
    names, shown = relation.columns, rows[:TABLE_ROWS]
    if sum(map(len, names)) + 2 * len(names) > console.width:
        for number, row in enumerate(shown, start=1):
            console.rule(f"row {number}", align="left")
            console.print(_record(names, row))
    else:
        console.print(_table(relation, shown))
    if len(rows) > TABLE_ROWS:
        more = f"… more than {TABLE_ROWS} rows: add a limit, or take --format csv"
        console.print(Text(more, style="dim"))


def _record(names: Sequence[str], row: Sequence[object]) -> Table:
    block = Table(box=None, pad_edge=False, show_header=False)
    for name, value in zip(names, row, strict=True):
        block.add_row(Text(name, style="bold"), Text(_cell(value)))
    return block


def _table(relation: DuckDBPyRelation, rows: Sequence[Sequence[object]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, kind in zip(relation.columns, relation.types, strict=True):
        numeric = NUMERIC.match(str(kind)) is not None
        table.add_column(escape(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    return table


def _cell(value: object) -> str:
    """One line of a value: numbers rounded, long text cut."""
    if value is None:
        return "·"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        value = f"[{', '.join(_cell(inner) for inner in value[:CELL_CHARACTERS])}]"
    text = printable(str(value).replace("\n", "⏎"))
    return text if len(text) <= CELL_CHARACTERS else f"{text[: CELL_CHARACTERS - 1]}…"
