"""Results of SQL as a table, CSV, JSON, JSON Lines or Parquet, streamed."""

import csv
import json
import math
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

from duckdb import DuckDBPyRelation
from rich.text import Text

from flows.cli.terminal import new_table, table_console
from rlt_core.errors import UserError
from rlt_core.printable import printable, spreadsheet_cell

TABLE_ROWS = 200
CELL_CHARACTERS = 100
BATCH_ROWS = 10_000
NUMBERS = (int, float, Decimal)


def write(relation: DuckDBPyRelation, format: str, output: Path) -> None:
    """Write a result to a file, completely or not at all. Raises UserError if that fails."""
    part = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        if format == "parquet":
            import pyarrow.parquet as pq

            from rlt_core.rows import CHECKED

            reader = relation.to_arrow_reader(BATCH_ROWS)
            with pq.ParquetWriter(part, reader.schema, **CHECKED) as writer:
                for batch in reader:
                    writer.write_batch(batch)
        else:
            with part.open("w", encoding="utf-8", newline="") as file:
                write_text(relation, format, file)
        os.replace(part, output)
    except OSError as error:
        raise UserError(f"--output {output}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


def write_text(relation: DuckDBPyRelation, format: str, file: TextIO) -> None:
    """Write a result as text.

    CSV is RFC 4180, with lists and structs as JSON; `safe csv` has no text that a spreadsheet takes
    for a formula. JSON has no NaN and infinities: they are null.
    """
    names = relation.columns
    if format == "table":
        _print_table(relation, file)
    elif format.endswith("csv"):
        # csv quotes a carriage return only if it is in the line terminator.
        lines = SimpleNamespace(write=lambda row: file.write(row.removesuffix("\r\n") + "\n"))
        writer = csv.writer(lines)
        safe = spreadsheet_cell if format == "safe csv" else lambda value: value
        writer.writerow(map(safe, names))
        for row in _rows(relation):
            writer.writerow([_json(v) if isinstance(v, list | dict) else safe(v) for v in row])
    else:
        is_array, separator = format == "json", ""
        file.write("[" if is_array else "")
        for row in _rows(relation):
            file.write(f"{separator}{_json(dict(zip(names, row, strict=True)))}")
            separator = ",\n" if is_array else "\n"
        file.write("]\n" if is_array else separator)


def _rows(relation: DuckDBPyRelation) -> Iterator[tuple[Any, ...]]:
    for batch in relation.to_arrow_reader(BATCH_ROWS):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _json(value: Any) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):  # of whole numbers too: DuckDB's sum of integers
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value


def _print_table(relation: DuckDBPyRelation, file: TextIO) -> None:
    """Print the first rows: as a table, or each as a block if the header is too wide."""
    console, names = table_console(file), relation.columns
    rows = relation.limit(TABLE_ROWS + 1).fetchall()
    if sum(map(len, names)) + 2 * len(names) > console.width:
        for row in rows[:TABLE_ROWS]:
            console.rule()
            for name, value in zip(names, row, strict=True):
                console.print(Text.assemble((name, "bold"), "  ", _cell(value)))
    else:
        first = dict(zip(names, rows[0], strict=True)) if rows else {}
        numbers = [name for name, value in first.items() if isinstance(value, NUMBERS)]
        table = new_table(*names, right=numbers)
        for row in rows[:TABLE_ROWS]:
            table.add_row(*map(_cell, row))
        console.print(table)
    if len(rows) > TABLE_ROWS:
        more = f"… more than {TABLE_ROWS} rows: add a limit, or take --format csv"
        console.print(more, style="dim")


def _cell(value: object) -> str:
    """Return a value as one line: numbers rounded, long text cut."""
    if value is None:
        return "·"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        value = f"[{', '.join(_cell(inner) for inner in value[:CELL_CHARACTERS])}]"
    text = printable(str(value).replace("\n", "⏎"))
    return text if len(text) <= CELL_CHARACTERS else f"{text[: CELL_CHARACTERS - 1]}…"
