"""Sources are read as written; an error names row and fix."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlt_core.config import DataConfig, FieldMapping
from rlt_core.data.rawrow import RawRow
from rlt_core.data.row_files import COMPRESSED
from rlt_core.data.sources import data_digest, read_source
from rlt_core.errors import UserError
from tests.row_files import write

RECORDS = [
    {"question": "What is 1+1?", "solution": "2", "trace": "one and one, that is two"},
    {"question": "Wie heißt π?\nKurz.", "solution": 'Kreiszahl, "Pi"', "trace": "é"},
]


def read(path: Path, **config: Any) -> list[RawRow]:
    return read_source(DataConfig(source=str(path), **config)).rows


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_type_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"data{suffix}", RECORDS)
    rows = read(path, fields=FieldMapping(trace="trace"))
    assert [row.row for row in rows] == [1, 2]
    found = [{"question": r.question, "solution": r.solution, "trace": r.trace} for r in rows]
    assert found == RECORDS


def test_fields_can_have_other_names_and_answers_be_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [{"q": "1+1", "s": "It is 2.", "a": 2}])
    (row,) = read(path, fields=FieldMapping(question="q", solution="s", answer="a"))
    assert (row.question, row.solution, row.answer, row.trace) == ("1+1", "It is 2.", "2", None)


def test_a_marker_divides_working_and_solution(tmp_path: Path) -> None:
    records = [
        {"question": "q", "solution": "2*3=6\nso #### 6"},
        {"question": "r", "solution": "#### 7"},
    ]
    path = write(tmp_path / "data.jsonl", records)
    rows = read(path, split_at="####")
    assert [(row.trace, row.solution) for row in rows] == [("2*3=6\nso", "6"), (None, "7")]


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('\n{"question": "a", "solution": "b"}\n\n')
    assert [row.row for row in read(path)] == [2]


GOOD = b'{"question": "a", "solution": "b"}\n'
BAD_FILES = {
    "undecodable": (GOOD + b'{"question": "\xff"}\n', r"row 2: byte 0xff is not UTF-8"),
    "invalid": (GOOD + b"{question: 1}\n", r"row 2: invalid JSON, column 2"),
    "cut": (GOOD + b'{"question": "a", "solution": \n', r"row 2: invalid JSON, column 30"),
    "list": (GOOD + b"[1]\n", r"row 2: expected an object with fields, found list"),
    "missing": (GOOD + b'{"qestion": "a", "solution": "b"}\n',
                r"row 2: no field 'question' \(it has qestion, solution\); did you mean 'qestion'\?"
                r" Set data\.fields\.question"),
    "no-solution": (GOOD + b'{"question": "a", "answer": "b"}\n', r"data\.fields\.solution"),
    "far": (b'{"question": "a"}\n', r"no field 'solution' \(it has question\)\. Set data\.fields"),
    "empty-question": (b'{"question": " ", "solution": "b"}\n', r"row 1: the question .* is empty"),
    "empty-solution": (b'{"question": "a", "solution": ""}\n', r"row 1: the solution .* is empty"),
    "null": (b'{"question": "a", "solution": null}\n', r"row 1: the solution .* is empty; fill"),
    "number": (b'{"question": 5, "solution": "b"}\n', r"row 1: the question .* is a number, not"),
    "nothing": (b"", r"there is no row in it"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_row_is_named(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    path = tmp_path / f"{name}.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


def test_bad_files_of_other_types(tmp_path: Path) -> None:
    cases = {
        "bytes.csv": (
            b"question,solution\na,b\n\xe9,c\n",
            "row 2: the question has byte 0xe9, which is not UTF-8",
        ),
        "ragged.csv": (b"question,solution\na,b\na,b,c\n", "row 2: its number of fields"),
        "not.parquet": (b"PAR1 but not really", "not a readable .parquet file"),
        "object.json": (b'{"question": "a"}', "expected a list of objects"),
        "two.json": (b'{"train": [{"a": 1}], "test": [{"a": 1}]}', "expected a list of objects"),
        "pretty.jsonl": (b'{\n"question": "a"\n}\n{\n"question": "b"\n}', "has several lines"),
        "number.json": (b"[1]", "row 1: expected an object with fields, found a number"),
        "broken.json": (b'[\n{"a": }]', "line 2, column 7: invalid JSON"),
        "data.xlsx": (b"", "expected a file that ends in .jsonl"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read(path)
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match=r"no such file \(one file is read, no pattern\)"):
        read(tmp_path / "*.jsonl")


SAME = {
    "list.jsonl": '[{"question": "a", "solution": "b"},\n {"question": "c", "solution": "d"}]',
    "named.json": '{"version": "1.0", "tags": ["x"],\n "data": [{"question": "a", "solution": "b"},'
    ' {"question": "c", "solution": "d"}]}',
    "lines.json": '\n{"question": "a", "solution": "b"}\n{"question": "c", "solution": "d"}',
    "CAPITALS.JSONL": '{"question": "a", "solution": "b"}\n{"question": "c", "solution": "d"}\n',
    "semicolons.csv": "\ufeffquestion;solution\r\na;b\r\nc;d\r\n",
    "lines.ndjson": '{"question": "a", "solution": "b"}\n{"question": "c", "solution": "d"}\n',
    "tabs.tsv": "question\tsolution\na\tb\nc\td\n",
    "tabs.CSV": "\nquestion\tsolution\na\tb\nc\td\n",
}


@pytest.mark.parametrize("name", SAME)
def test_what_programs_call_json_or_csv_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(SAME[name], encoding="utf-8")
    rows = read(path)
    assert [(row.question, row.solution) for row in rows] == [("a", "b"), ("c", "d")]
    assert data_digest(DataConfig(source=str(path))).endswith(path.suffix.lower())


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html>", "an HTML or XML page"), (b'<?xml version="1.0"?>', "an HTML or XML"),
        *((start, "compressed or a spreadsheet; unpack it") for start in COMPRESSED),
    ],
)  # fmt: skip
def test_a_file_that_holds_something_else_is_named(
    tmp_path: Path, start: bytes, message: str
) -> None:
    for name in ("data.jsonl", "data.csv", "data.parquet", "data.jsonl.gz", "data"):
        path = tmp_path / name
        path.write_bytes(start + bytes(40))
        for use in (read, lambda path: data_digest(DataConfig(source=str(path)))):
            with pytest.raises(UserError, match=message):
                use(path)


def test_a_folder_is_no_file_of_rows(tmp_path: Path) -> None:
    for use in (read, lambda path: data_digest(DataConfig(source=str(path)))):
        with pytest.raises(UserError, match="not a file; name a file that ends in"):
            use(tmp_path)


def test_bytes_that_are_no_text_in_parquet(tmp_path: Path) -> None:
    def text(*values: bytes) -> pa.Array:
        good = pa.array(values)
        return pa.StringArray.from_buffers(len(good), *good.buffers()[1:])

    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"question": text(b"a", b"b", b"\xff"), "solution": [*"123"]}), path)
    with pytest.raises(UserError, match="row 3: its text is not UTF-8"):
        read(path)
    turn = pa.StructArray.from_arrays(
        [text(b"user", b"gpt"), text(b"a", b"\xff")], ["from", "value"]
    )
    pq.write_table(pa.table({"conversations": pa.ListArray.from_arrays([0, 2], turn)}), path)
    with pytest.raises(UserError, match="row 1: its text is not UTF-8"):
        read(path)


def test_settings_that_exclude_each_other(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", RECORDS)
    with pytest.raises(UserError, match="exclude each other"):
        read(path, conversations=True, split_at="####")
    with pytest.raises(UserError, match=r"data\.fields\.trace=null"):
        read(path, fields=FieldMapping(trace="trace"), split_at="####")
    with pytest.raises(UserError, match=r"set the number of questions in data\.n_train"):
        read_source(DataConfig(source="arithmetic"))


def test_a_hub_data_set_that_is_not_here_names_the_fix() -> None:
    with pytest.raises(UserError, match="rlt fetch"):
        read_source(DataConfig(source="hub:no/such"))
    with pytest.raises(UserError, match="rlt fetch"):
        read_source(DataConfig(source="hub:no/such", revision="0" * 40))


def test_a_file_is_identified_by_content_and_type(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", RECORDS)
    second = write(tmp_path / "b.jsonl", RECORDS)
    assert data_digest(DataConfig(source=str(first))) == data_digest(DataConfig(source=str(second)))
    before = data_digest(DataConfig(source=str(first)))
    write(first, RECORDS[:1])
    assert data_digest(DataConfig(source=str(first))) != before
    with pytest.raises(UserError, match="no such file"):
        data_digest(DataConfig(source="arithmetics"))
