"""Rows in and out of an artifact's Parquet tables (columns: `rlt_core.schemas`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlt_core.schemas import LOGPROBS, TABLES


def write_rows(path: Path, table: str, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows of a declared table to one zstd Parquet file; returns their number.

    Raises ValueError for a column that the table does not have or a row that lacks one.
    """
    schema = TABLES[table]
    names = set(schema.names)
    checked = []
    for row in rows:
        if set(row) != names:
            odd = sorted(set(row) ^ names)
            raise ValueError(f"row of {table}: columns missing or unknown: {', '.join(odd)}")
        checked.append(row)
    write_table(path, pa.Table.from_pylist(checked, schema=schema))
    return len(checked)


def write_table(path: Path, table: pa.Table) -> None:
    """Write one zstd Parquet file.

    Log-probs hardly repeat, but their upper bytes do: split by byte, lists of floats take 3.1
    bytes a float in place of the 4.5 of a dictionary (SmolLM2's), and are read a quarter faster.
    """
    floats = [field.name for field in table.schema if field.type == LOGPROBS]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table,
        path,
        compression="zstd",
        use_dictionary=[leaf for leaf in _leaves(table.schema) if leaf.split(".")[0] not in floats],
        use_byte_stream_split=[f"{name}.list.element" for name in floats],
    )


def _leaves(schema: pa.Schema) -> list[str]:
    """Columns as Parquet names them."""
    return [
        f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
        for field in schema
    ]


def table_files(folder: Path, table: str) -> list[Path]:
    """The files of an artifact that hold a table: `{table}.parquet` or `{table}/*.parquet`."""
    single = folder / f"{table}.parquet"
    return [single] if single.exists() else sorted((folder / table).glob("*.parquet"))


def read_rows(folder: Path, table: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """All rows of a table in an artifact folder. Raises FileNotFoundError if it has none."""
    files = table_files(folder, table)
    if not files:
        raise FileNotFoundError(f"{folder} has no table {table}")
    tables = [pq.read_table(file, columns=columns, schema=TABLES[table]) for file in files]
    return pa.concat_tables(tables).to_pylist()
