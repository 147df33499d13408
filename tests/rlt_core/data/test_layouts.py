"""Data sets as people have them: common layouts are found, bad rows are dropped and listed."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlt_core.config import DataConfig, FieldMapping
from rlt_core.data.rawrow import PROVIDER_ERROR, RawRow
from rlt_core.data.sources import Source, found_layout, read_source
from rlt_core.errors import UserError
from rlt_core.prompts.format import load_format
from tests.row_files import write

REPLY = (
    "<|begin_of_thought|>\n\nhm\n\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n\nIt is 4.\n\n<|end_of_solution|>"
)
GOOD = {"question": "2+2?", "solution": "4", "trace": "two and two"}


def source(path: Path, records: list[Any], **config: Any) -> Source:
    """Records as they are, or lines."""
    lines = (line if isinstance(line, str) else json.dumps(line) for line in records)
    path.write_text("".join(line + "\n" for line in lines))
    return read_source(DataConfig(source=str(path), **config), format=load_format("rlt"))


def only(tmp_path: Path, *records: Any, **config: Any) -> RawRow:
    (row,) = source(tmp_path / "data.jsonl", list(records), **config).rows
    return row


# ---------------------------------------------------------------- layouts
SHAREGPT = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": REPLY}]
OPENAI = [{"role": "system", "content": "Think."}, {"role": "user", "content": "2+2?"},
          {"role": "assistant", "content": "<think>\nhm\n</think>\n\nIt is 4."}]  # fmt: skip
VERL = {"data_source": "x", "prompt": [{"role": "user", "content": "2+2?"}],
        "reward_model": {"style": "rule", "ground_truth": "4"}}  # fmt: skip


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"conversations": SHAREGPT}, ("2+2?", "hm", "It is 4.", None, None)),
        ({"conversations": {"from": ["human", "gpt"], "value": ["2+2?", REPLY]}},
         ("2+2?", "hm", "It is 4.", None, None)),
        ({"messages": OPENAI}, ("2+2?", "hm", "It is 4.", None, "Think.")),
        ({"system": "S", "messages": OPENAI[1:]}, ("2+2?", "hm", "It is 4.", None, "S")),
        (
            {"messages": [OPENAI[1], {"role": "assistant", "content": "It is 4."}]},
            ("2+2?", None, "It is 4.", None, None),
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "2+2?"}]},
                    {
                        "role": "assistant",
                        "content": [{"type": "text", "text": "4"}],
                        "reasoning_content": "hm",
                    },
                ]
            },
            ("2+2?", "hm", "4", None, None),
        ),
        (VERL, ("2+2?", None, "4", "4", None)),
        ({**VERL, "prompt": "2+2?"}, ("2+2?", None, "4", "4", None)),
        ({"problem": "2+2?", "solution": "It is 4.", "answer": "4", "messages": OPENAI},
         ("2+2?", None, "It is 4.", "4", None)),
        ({"problem": "2+2?", "answer": 4}, ("2+2?", None, "4", "4", None)),
        ({"prompt": "2+2?", "completion": "4"}, ("2+2?", None, "4", None, None)),
        ({"prompt": OPENAI[:2], "completion": [{"role": "assistant", "content": "4"}]},
         ("2+2?", None, "4", None, "Think.")),
        ({"instruction": "Double", "input": 2, "output": "4"},
         ("Double\n\n2", None, "4", None, None)),
        ({"instruction": "2+2?", "context": "", "response": "4"}, ("2+2?", None, "4", None, None)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_known_layout_is_found_and_said(
    tmp_path: Path, record: dict[str, Any], expected: tuple[Any, ...], suffix: str
) -> None:
    path = write(tmp_path / f"data{suffix}", [record])
    found = read_source(DataConfig(source=str(path)))
    (row,) = found.rows
    assert (row.question, row.trace, row.solution, row.answer, row.system) == expected
    assert found.found and "question from" in found.found
    assert found_layout(DataConfig(source=str(path))) == found.found


def test_configured_columns_go_before_found_ones(tmp_path: Path) -> None:
    record = {**VERL, "problem": "no", "solution": "no", "answer": "no"}
    fields = FieldMapping(question="prompt", solution="reward_model.ground_truth")
    row = only(tmp_path, record, fields=fields)
    assert (row.question, row.solution, row.answer) == ("2+2?", "4", None)
    with pytest.raises(UserError, match=r"no field 'reward_model\.truth'"):
        wrong = FieldMapping(question="problem", solution="reward_model.truth")
        only(tmp_path, record, fields=wrong)
    plain = {**GOOD, "problem": "no", "messages": OPENAI}
    assert only(tmp_path, plain).question == "2+2?"


@pytest.mark.parametrize("written", [json.dumps, repr], ids=["JSON", "as pandas writes it"])
def test_a_csv_cell_may_hold_a_list_or_an_object(tmp_path: Path, written: Any) -> None:
    path = write(tmp_path / "data.csv", [{"messages": written(OPENAI)}])
    (row,) = read_source(DataConfig(source=str(path))).rows
    assert (row.question, row.trace, row.solution) == ("2+2?", "hm", "It is 4.")
    truth = {"ground_truth": ["4", "IV"]}
    record = {**VERL, "prompt": written(VERL["prompt"]), "reward_model": written(truth)}
    path = write(tmp_path / "data.csv", [record])
    (row,) = read_source(DataConfig(source=str(path))).rows
    assert (row.question, row.answer, row.metadata) == ("2+2?", "4", '{"accepted": ["4", "IV"]}')
    path = write(tmp_path / "data.csv", [{"messages": "[{'from': 'human'} {'from': 'gpt'}]"}])
    with pytest.raises(UserError, match=r"row 1: .*neither JSON nor Python"):  # numpy's array
        read_source(DataConfig(source=str(path)))


def test_several_exchanges_are_refused_unless_the_last_is_chosen(tmp_path: Path) -> None:
    first = [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": REPLY}]
    record = {"conversations": [*first, *SHAREGPT]}
    for conversations in (True, False):
        with pytest.raises(UserError, match=r"row 1: the conversation has 2 exchanges.*turns=last"):
            only(tmp_path, record, conversations=conversations)
        row = only(tmp_path, record, conversations=conversations, turns="last")
        assert (row.question, row.solution) == ("2+2?", "It is 4.")
    asked = {**VERL, "prompt": [*OPENAI, {"role": "user", "content": "3+3?"}]}
    with pytest.raises(UserError, match="2 exchanges"):
        only(tmp_path, asked)
    assert only(tmp_path, asked, turns="last").question == "3+3?"


@pytest.mark.parametrize(
    "turns",
    [
        [{"from": "human", "value": "2+2?"}],
        [{"from": "gpt", "value": REPLY}],
        [SHAREGPT[1], SHAREGPT[0]],
        [*SHAREGPT, SHAREGPT[0]],
        [SHAREGPT[0], {"from": "tool", "value": "4"}, SHAREGPT[1]],
        [SHAREGPT[0], {"from": "gpt", "value": None}],
        [{"role": "user", "content": [{"type": "text", "text": "2+2?"},
                                      {"type": "image_url", "image_url": "x"}]}, OPENAI[2]],
        [{"role": "user", "content": [{"type": "text"}]}, OPENAI[2]],
        {"role": ["user", "assistant"], "content": ["2+2?"]}, {},
        [], None, "text", ["text"], [SHAREGPT[0], {"from": "gpt"}], {"from": "human"},
    ],
)  # fmt: skip
def test_turns_that_are_no_exchange_are_listed(tmp_path: Path, turns: Any) -> None:
    records = [{"conversations": SHAREGPT}] * 30 + [{"conversations": turns}]
    found = source(tmp_path / "data.jsonl", records)
    assert len(found.rows) == 30
    (dropped,) = found.dropped
    assert dropped["row"] == 31 and dropped["reason"] in ("turns", "empty", "missing")


# ---------------------------------------------------------------- values
@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("0.10", "0.10"), ("12345678901234567890", "12345678901234567890"), ("1e400", "1e400"),
        ("7" * 5000, "7" * 5000), ("-0", "-0"), ("1.0", "1.0"), ('"0.10"', "0.10"),
        ("NaN", None), ("Infinity", None), ("-Infinity", None), ("null", None), ('"nan"', None),
        ('"N/A"', None), ("true", "True"), ("false", "False"),
        ('""', None), ("[]", None), ("[NaN]", None), ('["0.10"]', "0.10"), ("[0.10]", "0.10"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_numbers_keep_their_digits_and_nan_is_missing(
    tmp_path: Path, written: str, answer: str | None, suffix: str
) -> None:
    path = tmp_path / f"data{suffix}"
    line = f'{{"question": "q", "solution": "some words", "answer": {written}}}'
    path.write_text(f"[{line}]" if suffix == ".json" else line)
    (row,) = read_source(DataConfig(source=str(path), fields=FieldMapping(answer="answer"))).rows
    assert row.answer == answer


def test_numbers_of_parquet_and_csv(tmp_path: Path) -> None:
    answers = {
        "double": pa.array([0.1, float("nan"), float("inf"), None]),
        "float": pa.array(np.array([0.1, np.nan, -np.inf, 2.5], np.float32)),
        "decimal": pa.array([Decimal("0.10"), None, Decimal("1E+3"), None], pa.decimal128(9, 2)),
        "int": pa.array([1, 0, 2**63 - 1, None]),
    }
    expected = {
        "double": ["0.1", None, None, None],
        "float": ["0.1", None, None, "2.5"],
        "decimal": ["0.10", None, "1000.00", None],
        "int": ["1", "0", str(2**63 - 1), None],
    }
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"question": list("abcd"), "solution": list("efgh"), **answers}), path)
    for name, texts in expected.items():
        data = DataConfig(source=str(path), fields=FieldMapping(answer=name))
        assert [row.answer for row in read_source(data).rows] == texts
    path = tmp_path / "data.csv"
    path.write_text("question,solution,answer\na,b,0.10\na,b,nan\na,b,\na,b,inf\na,b,NaN\n")
    data = DataConfig(source=str(path), fields=FieldMapping(answer="answer"))
    assert [row.answer for row in read_source(data).rows] == ["0.10", None, None, None, None]


@pytest.mark.parametrize("written", ['[0.5, null, NaN, "1/2"]', '"[\\"0.5\\", \\"1/2\\"]"'])
def test_a_list_of_answers_is_any_of_them(tmp_path: Path, written: str) -> None:
    line = f'{{"question": "q", "solution": "s", "answer": {written}}}'
    row = only(tmp_path, line, fields=FieldMapping(answer="answer"))
    assert row.answer == "0.5"
    assert json.loads(row.metadata or "") == {"accepted": ["0.5", "1/2"]}
    line = f'{{"prompt": "q", "reward_model": {{"ground_truth": {written}}}}}'
    row = only(tmp_path, line)
    assert (row.solution, row.answer) == ("0.5", "0.5")
    assert json.loads(row.metadata or "") == {"accepted": ["0.5", "1/2"]}


# ---------------------------------------------------------------- bad rows
BAD_REPLIES = {
    "two thoughts": REPLY[: REPLY.index("<|begin_of_s")] + REPLY,
    "two solutions": REPLY + REPLY[REPLY.index("<|begin_of_s") :],
    "text before": "Sure! " + REPLY,
    "text between": REPLY.replace("\n\n<|begin_of_s", "so<|begin_of_s"),
    "cut": REPLY[:-5],
    "no tags": "It is 4.",
    "empty thought": REPLY.replace("hm", " "),
    "empty solution": REPLY.replace("It is 4.", ""),
    "wrong order": REPLY[REPLY.index("<|begin_of_s") :] + REPLY[: REPLY.index("<|begin_of_s")],
    "error": "Error code: 429 - {'error': {'message': 'Rate limit reached'}}",
    "error as solution": REPLY.replace("It is 4.", "openai.RateLimitError: too many requests"),
    "error as thought": REPLY.replace("hm", "<html>\n<head><title>502 Bad Gateway</title></head>"),
}  # fmt: skip


@pytest.mark.parametrize("conversations", [True, False])
def test_replies_without_one_thought_and_one_solution_are_dropped(
    tmp_path: Path, conversations: bool
) -> None:
    bad = [
        {"conversations": [SHAREGPT[0], {"from": "gpt", "value": reply}]}
        for reply in BAD_REPLIES.values()
    ]
    records = [*bad, *[{"conversations": SHAREGPT}] * 300]
    found = source(tmp_path / "data.jsonl", records, conversations=conversations)
    assert len(found.rows) == 300
    assert [row["row"] for row in found.dropped] == list(range(1, len(bad) + 1))
    reasons = {name: row["reason"] for name, row in zip(BAD_REPLIES, found.dropped, strict=True)}
    assert {reasons[name] for name in reasons if name.startswith("error")} == {"provider_error"}
    assert {reasons[name] for name in reasons if name.startswith("empty")} == {"empty"}
    assert all(row["detail"] for row in found.dropped)
    with pytest.raises(UserError, match=r"row 1: .*12 of 312 rows.*max_dropped allows 1%"):
        source(tmp_path / "b.jsonl", records, conversations=conversations, max_dropped=0.01)


BAD_LINES = {
    "not JSON": "{question: 1}",
    "list": "[1]",
    "null": json.dumps({**GOOD, "trace": None}),
    "empty": json.dumps({**GOOD, "trace": " \n"}),
    "NaN": '{"question": "q", "solution": "s", "trace": NaN}',
    "absent": '{"question": "q", "solution": "s"}',
    "number": json.dumps({**GOOD, "trace": 5}),
    "lone surrogate": '{"question": "q \\ud83d", "solution": "s", "trace": "t"}',
    "in the solution": '{"question": "q", "solution": "s\\udc00", "trace": "t"}',
    "nested": json.dumps(GOOD)[:-1] + ', "x": ' + "[" * 10**5 + "]" * 10**5 + "}",
    "twice": '{"question": "q", "question": "r", "solution": "s", "trace": "t"}',
    "tags": json.dumps({**GOOD, "trace": "a<|end_of_thought|>"}),
    "error": json.dumps({**GOOD, "trace": "503 Service Unavailable"}),
    "bool": json.dumps({**GOOD, "solution": True}),
}  # fmt: skip


def test_a_bad_row_is_dropped_and_listed_or_named_with_a_fix(tmp_path: Path) -> None:
    records = [GOOD] * 400
    for place, line in enumerate(BAD_LINES.values()):
        records.insert(10 * place, line)  # type: ignore[arg-type]
    found = source(tmp_path / "data.jsonl", records, fields=FieldMapping(trace="trace"))
    assert len(found.rows) == 400
    assert [row["row"] for row in found.dropped] == [10 * i + 1 for i in range(len(BAD_LINES))]
    for line in BAD_LINES.values():
        with pytest.raises(UserError) as error:
            source(tmp_path / "one.jsonl", [GOOD, line], fields=FieldMapping(trace="trace"))
        message = str(error.value)
        assert "one.jsonl, row 2: " in message and "\n" not in message
        message.encode()


def test_a_row_may_lack_the_answer_that_others_have(tmp_path: Path) -> None:
    records = [
        {"question": "a", "solution": "b", "answer": "1"},
        {"question": "c", "solution": "d"},
    ]
    found = source(tmp_path / "data.jsonl", records, fields=FieldMapping(answer="answer"))
    assert [row.answer for row in found.rows] == ["1", None]
    with pytest.raises(UserError, match="row 1: no field 'answr'"):
        source(tmp_path / "data.jsonl", records, fields=FieldMapping(answer="answr"))


def test_fields_that_nobody_reads_may_hold_anything(tmp_path: Path) -> None:
    record = '{"question": "q", "solution": "s", "n": ' + "9" * 5000 + ', "x": "\\ud83d"}'
    assert only(tmp_path, record).solution == "s"
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table([["q"], ["s"], ["a"], ["b"]], ["question", "solution", "x", "x"]), path)
    assert read_source(DataConfig(source=str(path))).rows[0].solution == "s"
    for fields in (FieldMapping(answer="x"), FieldMapping(question="x")):
        with pytest.raises(UserError, match="row 1: two fields are named 'x'"):
            read_source(DataConfig(source=str(path), fields=fields))
    path = tmp_path / "data.csv"
    path.write_bytes(b"question,solution,x,x\nq,s,\xff,b\n")
    assert read_source(DataConfig(source=str(path))).rows[0].solution == "s"
    with pytest.raises(UserError, match="row 1: two fields are named 'x'"):
        read_source(DataConfig(source=str(path), fields=FieldMapping(trace="x")))


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(f"question,solution\n{'why ' * 300_000},s\n")
    assert len(read_source(DataConfig(source=str(path))).rows[0].question) == 1_199_999


@pytest.mark.parametrize("at", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, suffix: str, at: float) -> None:
    records = [{"question": f"q {i}", "solution": "s, t"} for i in range(1000)]
    path = tmp_path / f"data{suffix}"
    whole = write(path, records).read_bytes()
    inside = (
        int(at * len(whole)) if suffix == ".parquet" else whole.index(b"q", int(at * len(whole)))
    )
    path.write_bytes(whole[: inside + 1])
    with pytest.raises(UserError) as error:
        read_source(DataConfig(source=str(path)))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_page_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    table = pa.table({"question": [f"q {i}" for i in range(999)], "solution": ["s"] * 999})
    pq.write_table(table, path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[40:80] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"data\.parquet.*: not a readable \.parquet file") as error:
        read_source(DataConfig(source=str(path)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_encodings(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = tmp_path / f"data{suffix}"
    text = {
        ".jsonl": '{"question": "é", "solution": "s"}\r\n',
        ".json": '[{"question": "é", "solution": "s"}]\r\n',
        ".csv": "question,solution\r\né,s\r\n",
    }
    path.write_bytes(text[suffix].encode(encoding))
    if encoding != "latin-1":
        assert read_source(DataConfig(source=str(path))).rows[0].question == "é"
    else:
        with pytest.raises(UserError, match="not UTF-8; save the file as UTF-8"):
            read_source(DataConfig(source=str(path)))


@pytest.mark.parametrize(
    "text",
    [
        "Error code: 429 - {'error': {'message': 'Rate limit reached for gpt-4'}}",
        '{"error": {"message": "overloaded", "type": "overloaded_error"}}',
        "openai.APIConnectionError: Connection error.", "Request timed out.",
        "500 Internal Server Error", "HTTP 503: Service Unavailable", "Too Many Requests",
        "httpx.ReadTimeout: ", "Error: Service Unavailable", "<html><title>504 Gateway",
        "upstream connect error or disconnect/reset before headers", "[ERROR] 502 Bad Gateway",
        "APITimeoutError('Request timed out.')", "429 Client Error: Too Many Requests for url",
        "This model's maximum context length is 8192 tokens.", "Error: 500",
    ],
)  # fmt: skip
def test_error_messages_of_providers(text: str) -> None:
    assert PROVIDER_ERROR.match(text)


@pytest.mark.parametrize(
    "text",
    [
        "404", "500", "There are 429 ways.", "Error bars are 5% wide.", "KeyError: 'a'", "4",
        "The server returns 503 Service Unavailable.", "Connection between a and b is linear.",
        "The error is at most 500.", "Internal angles sum to 180.", "500 people not found in",
        "Timeout is 3 seconds.", "Rate limiting steps decide.", "<p>x</p>", "errors cancel",
    ],
)  # fmt: skip
def test_texts_that_are_no_error_messages(text: str) -> None:
    assert not PROVIDER_ERROR.match(text)
