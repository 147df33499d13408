"""Tables of a user's file, row by row: JSONL, JSON, CSV, Parquet. What is wrong is named."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlt_core.errors import UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

Record = dict[str, Any]


def read_records(path: Path) -> Iterator[tuple[int, Record]]:
    """(1-based row, fields) of every row. The row of a JSONL file is its line. Raises UserError."""
    if not path.exists():
        raise UserError(f"{path}: no such file (paths start at {Path.cwd()})")
    if path.suffix not in SUFFIXES or not path.is_file():
        raise UserError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    return readers[path.suffix](path)


def _decode(path: Path, row: int, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, row {row}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as "
            "UTF-8"
        ) from None


def _parse(path: Path, row: int | None, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"row {row}" if row else f"line {error.lineno}"
        raise UserError(
            f"{path}, {place}, column {error.colno}: invalid JSON ({error.msg})"
        ) from None


def _object(path: Path, row: int, value: Any) -> Record:
    if not isinstance(value, dict):
        raise UserError(
            f"{path}, row {row}: expected an object with fields, found {type(value).__name__}"
        )
    return value


def _jsonl(path: Path) -> Iterator[tuple[int, Record]]:
    with path.open("rb") as file:
        for row, line in enumerate(file, start=1):
            text = _decode(path, row, line)
            if text.strip():
                yield row, _object(path, row, _parse(path, row, text.rstrip()))


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as "
            "UTF-8"
        ) from None


def _json(path: Path) -> Iterator[tuple[int, Record]]:
    value = _parse(path, None, _text(path))
    if not isinstance(value, list):
        raise UserError(f"{path}: expected a list of objects; for one object a line use .jsonl")
    for row, item in enumerate(value, start=1):
        yield row, _object(path, row, item)


def _csv(path: Path) -> Iterator[tuple[int, Record]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    row = 0
    try:
        for row, record in enumerate(reader, start=1):
            if None in record or None in record.values():
                raise UserError(
                    f"{path}, row {row}: its number of fields is not that of the header; quote "
                    "fields that contain commas"
                )
            yield row, record
    except csv.Error as error:
        raise UserError(f"{path}, row {row + 1}: {error}") from None


def _parquet(path: Path) -> Iterator[tuple[int, Record]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                columns = {name: batch.column(name) for name in batch.schema.names}
                for i in range(batch.num_rows):
                    row += 1
                    yield row, {name: column[i].as_py() for name, column in columns.items()}
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not a Parquet file ({error})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, row {row}: text is not UTF-8 ({error.reason})") from None
