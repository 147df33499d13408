"""Traces of others come in as they are, or are refused for a named reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlt_core.data.imports import import_traces
from rlt_core.errors import UserError
from rlt_core.models import tiny_tokenizer
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.rows import read_rows

FORMAT = load_format("tiny")
PROMPTER = Renderer(FORMAT, tiny_tokenizer(FORMAT))


def write(tmp_path: Path, *records: tuple[str, str, str]) -> Path:
    path = tmp_path / "traces.jsonl"
    names = ("question", "solution", "trace")
    path.write_text("".join(json.dumps(dict(zip(names, r, strict=True))) + "\n" for r in records))
    return path


def imported(path: Path, tmp_path: Path) -> dict[str, float]:
    return import_traces(path, "theirs", PROMPTER, tmp_path / "out", 0.05, Progress())


def test_traces_come_in_as_the_ids_of_their_text(tmp_path: Path) -> None:
    path = write(tmp_path, ("1+1", "2", "einß"), ("1+1", "2", "zwei"), ("2+2", "4", "vier"))
    metrics = imported(path, tmp_path)
    assert metrics == {"questions": 2, "traces": 3, "dropped": 0}
    traces = read_rows(tmp_path / "out", "traces")
    questions = {row["question_id"]: row for row in read_rows(tmp_path / "out", "questions")}
    assert len({trace["trace_id"] for trace in traces}) == 3
    for trace in traces:
        assert PROMPTER.decode(trace["token_ids"]) == trace["text"]
        explanation = PROMPTER.split_completion(trace["completion_ids"])
        assert explanation.closed and explanation.ids == trace["token_ids"]
        assert questions[trace["question_id"]]["split"] == "train"


def test_bad_traces_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rows 1 and 2 give one question two solutions"):
        imported(write(tmp_path, ("1+1", "2", "a"), ("1+1", "3", "b")), tmp_path)
    with pytest.raises(UserError, match="row 1: the trace contains </explain>"):
        imported(write(tmp_path, ("1+1", "2", "a</explain>")), tmp_path)
    with pytest.raises(UserError, match=r"row 1: the trace \(field 'trace'\) is empty"):
        imported(write(tmp_path, ("1+1", "2", "")), tmp_path)
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "1+1", "solution": "2", "reasoning": "a"}\n')
    with pytest.raises(
        UserError, match=r"row 1: no field 'trace' .* Rename the .* to 'trace'\. \(1 of 1 rows"
    ):
        imported(other, tmp_path)
    with pytest.raises(UserError, match="no such file"):
        imported(tmp_path / "none.jsonl", tmp_path)


def test_one_bad_trace_of_many_is_dropped_and_listed(tmp_path: Path) -> None:
    good = [(f"{i}+{i}", str(2 * i), "so") for i in range(60)]
    path = write(tmp_path, *good, ("1+7", "8", ""), ("2+2", "5", "no"), ("9+9", "18", "</explain>"))
    metrics = imported(path, tmp_path)
    assert metrics == {"questions": 60, "traces": 60, "dropped": 3}
    dropped = read_rows(tmp_path / "out", "dropped")
    assert [(row["row"], row["reason"]) for row in dropped] == [
        (61, "empty"), (62, "duplicate"), (63, "tags"),
    ]  # fmt: skip


def test_traces_may_come_as_conversations(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    turns = [{"role": "user", "content": "1+1"},
             {"role": "assistant", "content": "2", "reasoning_content": "one and one"}]  # fmt: skip
    path.write_text(json.dumps({"messages": turns}))
    assert imported(path, tmp_path)["traces"] == 1
    (trace,) = read_rows(tmp_path / "out", "traces")
    assert trace["text"] == "one and one"
