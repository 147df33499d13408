"""Read and write an artifact's Parquet tables (columns: `rlt_core.sql.schemas`)."""

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlt_core.environment import disk_space
from rlt_core.errors import UserError
from rlt_core.sql.schemas import LOGPROBS, TABLES

ROWS_AT_A_TIME = 2000
CHECKED: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
"""Options of every Parquet file that is written. Readers verify the checksums of its pages."""


def write_rows(path: Path, table: str, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows of a declared table to a zstd Parquet file, a few at a time; return their number.

    Raises ValueError for an unknown or missing column.
    """
    schema, left, count = TABLES[table], iter(rows), 0
    names = set(schema.names)
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_space(path.parent), pq.ParquetWriter(path, schema, **_options(schema)) as writer:
        while part := list(islice(left, ROWS_AT_A_TIME)):
            for row in part:
                if set(row) != names:
                    columns = ", ".join(sorted(set(row) ^ names))
                    raise ValueError(f"row of {table}: columns missing or unknown: {columns}")
            writer.write_table(pa.Table.from_pylist(part, schema=schema))
            count += len(part)
    return count


def write_tables(folder: Path, **tables: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Write each table to a file of its name in a folder; return the number of its rows."""
    return {
        name: write_rows(folder / f"{name}.parquet", name, rows) for name, rows in tables.items()
    }


def write_table(path: Path, table: pa.Table) -> None:
    """Write one zstd Parquet file."""
    with disk_space(path.parent, table.nbytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, **_options(table.schema))


def _options(schema: pa.Schema) -> dict[str, Any]:
    """Return Parquet options. Log-probs rarely repeat, but their upper bytes do: split by byte,
    lists of floats take 3.1 bytes per float instead of 4.5 with a dictionary (SmolLM2's), and are
    read a quarter faster."""
    floats = [field.name for field in schema if field.type == LOGPROBS]
    return CHECKED | {
        "use_dictionary": [leaf for leaf in _leaves(schema) if leaf.split(".")[0] not in floats],
        "use_byte_stream_split": [f"{name}.list.element" for name in floats],
    }


def _leaves(schema: pa.Schema) -> list[str]:
    """Return Parquet's names of the columns."""
    return [
        f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
        for field in schema
    ]


def table_files(folder: Path, table: str) -> list[Path]:
    """Return an artifact's files of a table: `{table}.parquet` or `{table}/*.parquet`."""
    single = folder / f"{table}.parquet"
    return [single] if single.exists() else sorted((folder / table).glob("*.parquet"))


def read_rows(folder: Path, table: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Return all rows of a table in an artifact folder. Raises FileNotFoundError."""
    files = table_files(folder, table)
    if not files:
        raise FileNotFoundError(f"{folder} has no table {table}")
    tables = [read_table(file, columns=columns, schema=TABLES[table]) for file in files]
    return pa.concat_tables(tables).to_pylist()


def read_table(source: Path | list[Path], **options: Any) -> pa.Table:
    """Read Parquet files with pyarrow's options; verify the checksums of pages that have one.
    Raises UserError for a damaged file."""
    try:
        return pq.read_table(source, page_checksum_verification=True, **options)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, FileNotFoundError | MemoryError):
            raise
        raise UserError(f"{source}: damaged or no Parquet file: {error}") from None
