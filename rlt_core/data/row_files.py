"""Read a user's file row by row: JSONL, JSON, CSV or Parquet. Errors name file, row and fix."""

import ast
import codecs
import csv
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np

from rlt_core.errors import UserError, first_line

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
BLANK = "\ufeff\0 \t\r\n"
"""Characters of a line without a row, or before the first one."""
COMPRESSED = (
    b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ", b"PK\x03\x04", b"\xd0\xcf\x11\xe0",
)  # fmt: skip
"""First bytes of gzip, zstd, bzip2, xz, and of ZIP archives and spreadsheets."""
PAGES = (b"<!doctype", b"<html", b"<?xml")
"""First bytes of a page or an error message that was saved as data."""
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
BATCH_ROWS = 256
"""Number of rows of a Parquet file that are decoded at once."""
MISSING = frozenset({"", "nan", "-nan", "<na>", "n/a", "#n/a", "null", "none", "inf", "-inf"})
"""Spellings of a missing value or a division by zero by pandas and Python in text cells."""

Record = Mapping[str, Any]
Read = Callable[[], Record]
T = TypeVar("T")


class BadRow(Exception):
    """A row that cannot be used: `reason` is a word for the table `dropped`, the message says what
    is wrong and how to fix it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message.encode("utf-8", "backslashreplace").decode())
        self.reason = reason


class NumberText(str):
    """A number with the digits of the file."""


class Twice:
    """The value of a field whose name occurs twice in the row."""


def require_file(path: Path, field: str = "", others: str = "") -> None:
    """Raise UserError for what is no file of rows, by its name and first bytes. `field` of the
    config names the path; `others`: what it could have been, too."""
    shown = f"{field}={str(path)!r}" if field else str(path)
    if not path.exists():
        start = "write $HOME for ~" if str(path)[:1] == "~" else f"paths start at {Path.cwd()}"
        start = "one file is read, no pattern" if "*" in path.name else start
        raise UserError(f"{shown}: no such file ({start}){others}")
    ends = f"a file that ends in {', '.join(SUFFIXES)}"
    if not path.is_file():
        raise UserError(f"{shown}: not a file; name {ends}")
    with path.open("rb") as file:
        begin = file.read(64)
    if begin.startswith(COMPRESSED):
        raise UserError(f"{path}: compressed or a spreadsheet; unpack it, or save it as CSV")
    if begin.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a Git LFS pointer; `git lfs pull` fetches the file itself")
    if begin.strip(BLANK.encode()).lower().startswith(PAGES):
        raise UserError(f"{path}: an HTML or XML page, no rows; download the file again")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: expected {ends}")


def read_records(path: Path) -> Iterator[tuple[int, Read]]:
    """Yield (1-based number, function that reads the fields) for each row. In JSONL it is the line.

    Reading a row may raise `BadRow` or any parser's error: call it inside `checked`. Raises
    UserError for a file that is unreadable as a whole.
    """
    require_file(path)
    suffix, row = path.suffix.lower(), 0
    readers = {
        ".jsonl": _json, ".ndjson": _json, ".json": _json, ".csv": _csv, ".tsv": _csv,
        ".parquet": _parquet,
    }  # fmt: skip
    try:
        for row, read in readers[suffix](path):
            yield row, read
    except UserError:
        raise
    except Exception as error:  # a damaged file makes its parser raise anything
        place = f"{path}, row {row + 1}" if row else f"{path}"
        raise UserError(
            f"{place}: not a readable {suffix} file ({first_line(error)}); write it again"
        ) from None


def checked(read: Callable[[], T]) -> T:
    """Return the result of `read`, which reads one row. Raises BadRow for any fault in the row."""
    try:
        return read()
    except BadRow:
        raise
    except UnicodeError:
        detail = "its text is not UTF-8; save the file as UTF-8"
    except RecursionError:
        detail = "its brackets are nested too deeply to be read; remove the field that has them"
    except Exception as error:  # a parser may raise anything
        detail = f"{first_line(error)}; fix the row or remove it"
    raise BadRow("unreadable", detail)


def in_memory(rows: Iterable[Record]) -> Iterator[tuple[int, Read]]:
    """Yield rows in memory as `read_records` does those of a file."""
    return ((number, partial(dict, row)) for number, row in enumerate(rows, start=1))


def read_all(source: Path | Iterable[Record], convert: Callable[[int, Record], T]) -> Iterator[T]:
    """Yield every row of a file, or of rows in memory, converted. Raises UserError for the first
    bad row, or if there is none."""
    file, row = f"{source}, " if isinstance(source, Path) else "", 0
    for row, read in read_records(source) if isinstance(source, Path) else in_memory(source):
        try:
            yield checked(lambda row=row, read=read: convert(row, read()))  # type: ignore[misc]
        except BadRow as error:
            raise UserError(f"{file}row {row}: {first_line(error)}") from None
    if not row:
        raise UserError(f"{source}: there is no row in it" if file else "there is no row")


def count_rows(path: Path) -> int:
    """Return the approximate number of rows in a file, without parsing them."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            return int(pq.read_metadata(path).num_rows)
        except (OSError, ValueError) as error:
            said = first_line(error)
            raise UserError(f"{path}: not a Parquet file ({said}); write it again") from None
    mark = b"}" if suffix == ".json" else b"\n"
    with path.open("rb") as file:
        return max(1, sum(block.count(mark) for block in iter(partial(file.read, 1 << 20), b"")))


# ---------------------------------------------------------------- values
def value_of(record: Record, name: str) -> Any:
    """Return a field, or for `a.b` the field b of the field a (in a list: the item number b).

    None for a missing value: null, NaN, infinity, empty text or one of `MISSING`. Raises KeyError
    if there is no such field.
    """
    value: Any = record[name] if name in record else _nested(record, name)
    if isinstance(value, Twice):
        raise BadRow("unreadable", f"two fields are named {name!r}; rename or remove one of them")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str) and value.strip().casefold() in MISSING:
        return None
    return value


def _nested(record: Any, name: str) -> Any:
    value = record
    for part in name.split("."):
        if isinstance(value, str) and value.startswith(("{", "[")):
            value = in_cell(value)
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        else:
            raise KeyError(name)
    return value


def kind_of(value: Any) -> str:
    """Return the name of a value's type, for messages."""
    if isinstance(value, NumberText):
        return "a number"
    return "null" if value is None else type(value).__name__


def in_cell(text: str) -> Any:
    """Return the list or object that a CSV file's cell holds, as JSON or as pandas writes it.
    Raises BadRow."""
    try:
        return DECODER.decode(text.strip())
    except json.JSONDecodeError:
        pass
    try:
        return ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, MemoryError):
        raise BadRow(
            "unreadable",
            "a cell has a list that is neither JSON nor Python; write the file as JSONL or Parquet",
        ) from None


def _once(names: Iterable[str], values: Iterable[Any]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, value in zip(names, values, strict=True):
        record[name] = Twice() if name in record else value
    return record


# ---------------------------------------------------------------- JSON
def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    return record if len(record) == len(pairs) else _once(*zip(*pairs, strict=True))


DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=NumberText,
    parse_float=NumberText,
    parse_constant=lambda _: None,
)


def _is_object(value: Any) -> Record:
    if not isinstance(value, dict):
        raise BadRow("unreadable", f"expected an object with fields, found {kind_of(value)}")
    return value


def _line(line: str) -> Record:
    for code in surrogates(line):
        raise BadRow("unreadable", _no_utf8(code))
    try:
        return _is_object(DECODER.decode(line.lstrip("\ufeff").rstrip()))
    except json.JSONDecodeError as error:
        place = f", column {error.colno}"
        raise BadRow("unreadable", f"invalid JSON{place} ({error.msg}); write it again") from None


def _no_utf8(code: int) -> str:
    return f"byte 0x{code & 0xFF:02x} is not UTF-8; save the file as UTF-8"


def _opened(path: Path, newline: str = "\n") -> TextIO:
    """Open a file in UTF-8, or in UTF-16, as Windows programs write it. Bytes that are not UTF-8
    become lone surrogates."""
    with path.open("rb") as file:
        encoding = "utf-16" if file.read(2) in UTF_16 else "utf-8-sig"
    return path.open(encoding=encoding, errors="surrogateescape", newline=newline)


def _json(path: Path) -> Iterator[tuple[int, Read]]:
    """Read one list of objects, or an object per line, whichever of the two the file has."""
    return _lines(path) if _has_lines(path) else _list(path)


def _has_lines(path: Path) -> bool:
    with _opened(path) as file:
        first, second = islice(chain((line for line in file if line.strip(BLANK)), ("", "")), 2)
    if first.strip(BLANK).startswith("["):
        return False
    if path.suffix.lower() != ".json":
        if first.strip(BLANK) == "{" and second:
            raise UserError(f"{path}: an object has several lines; write each on one (`jq -c .`)")
        return True
    try:
        checked(partial(_line, first))
    except BadRow:
        return False
    return bool(second)


def _lines(path: Path) -> Iterator[tuple[int, Read]]:
    with _opened(path) as file:
        for row, line in enumerate(file, start=1):
            if line.strip(BLANK):
                if not line.endswith("\n"):
                    _require_whole(path, row, partial(_line, line))
                yield row, partial(_line, line)


def _require_whole(path: Path, row: int, read: Read) -> None:
    """Raise UserError if the last line, which has no line break, is unreadable: the file is cut."""
    try:
        checked(read)
    except BadRow as error:
        raise UserError(
            f"{path}, row {row}: {first_line(error)} (the last row: is the file cut off?)"
        ) from None


def _list(path: Path) -> Iterator[tuple[int, Read]]:
    with _opened(path) as file:
        text = file.read()
    for code in surrogates(text):
        line = text.count("\n", 0, text.index(chr(code))) + 1
        raise UserError(f"{path}, line {line}: {_no_utf8(code)}")
    try:
        rows = DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}, column {error.colno}: invalid JSON ({error.msg}); write "
            "it again"
        ) from None
    del text
    if isinstance(rows, dict):  # {"version": "1.0", "data": [...]}
        held = (each for each in rows.values() if isinstance(each, list))
        lists = [each for each in held if each and isinstance(each[0], dict)]
        rows = lists[0] if len(lists) == 1 else rows
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of objects, or an object per line")
    for row in range(len(rows)):
        value, rows[row] = rows[row], None  # memory
        yield row + 1, partial(_is_object, value)


# ---------------------------------------------------------------- CSV
def _csv(path: Path) -> Iterator[tuple[int, Read]]:
    csv.field_size_limit(sys.maxsize)
    with path.open("rb") as binary:
        binary.seek(max(0, path.stat().st_size - 2))
        ends = binary.read().rstrip(b"\0")[-1:] in b"\r\n"  # \0: of UTF-16
    with _opened(path, newline="") as file:
        first = next(filter(str.strip, file), "")
        file.seek(0)
        signs = (sign for sign in ";\t" if sign in first and "," not in first)
        sign = "\t" if path.suffix.lower() == ".tsv" else next(signs, ",")
        lines = csv.reader(file, strict=True, delimiter=sign)
        header = next(filter(None, lines), [])
        for code in chain.from_iterable(map(surrogates, header)):
            raise UserError(f"{path}, header: {_no_utf8(code)}")
        row, cells = 0, header
        for row, cells in enumerate(filter(None, lines), start=1):
            yield row, partial(_cells, header, cells)
        if len(cells) != len(header) and not ends:
            _require_whole(path, row, partial(_cells, header, cells))


def _cells(header: list[str], cells: list[str]) -> Record:
    if len(cells) != len(header):
        raise BadRow(
            "unreadable",
            f"its number of fields is {len(cells)}, that of the header {len(header)}; quote fields "
            "that contain commas",
        )
    return _once(header, cells)


def surrogates(text: str) -> list[int]:
    """Return the code points that UTF-8 cannot encode; those from 0xdc80 are bytes of a file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return [ord(char) for char in text if "\ud800" <= char <= "\udfff"]
    return []


# ---------------------------------------------------------------- Parquet
class _ParquetRow(Mapping[str, Any]):
    """A row of a batch; only the fields that are read are converted."""

    def __init__(self, batch: Any, row: int) -> None:
        self._batch, self._row = batch, row

    def __getitem__(self, name: str) -> Any:
        names = self._batch.schema.names
        if names.count(name) > 1:
            return Twice()
        if name not in names:
            raise KeyError(name)
        column = self._batch.column(names.index(name))
        value = column[self._row].as_py()
        return float(str(np.float32(value))) if column.type == "float" and value else value

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(self._batch.schema.names))

    def __len__(self) -> int:
        return len(set(self._batch.schema.names))


def _parquet(path: Path) -> Iterator[tuple[int, Read]]:
    import pyarrow.parquet as pq

    row = 0
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            for i in range(batch.num_rows):
                row += 1
                yield row, partial(_ParquetRow, batch, i)
