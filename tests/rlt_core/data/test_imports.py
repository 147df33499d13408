"""Traces, explanations and scores of others: every row is used, or an error names row and fix."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlt_core.config import DataConfig
from rlt_core.data.imports import import_scores, import_traces, own_traces, read_explanations
from rlt_core.data.prepare import prepare_questions
from rlt_core.errors import UserError
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from rlt_core.rows import read_rows
from tests import row_files
from tests.rlt_core.data.prepared import RENDERER


# ---------------------------------------------------------------- traces
def write(tmp_path: Path, *records: tuple[str, str, str]) -> Path:
    names = ("question", "solution", "trace")
    rows = [dict(zip(names, record, strict=True)) for record in records]
    return row_files.write(tmp_path / "traces.jsonl", rows)


def imported(path: Path, tmp_path: Path) -> dict[str, float]:
    return import_traces(path, "theirs", RENDERER, tmp_path / "out", 0.05, Progress())


def test_traces_get_the_ids_of_their_text(tmp_path: Path) -> None:
    path = write(tmp_path, ("1+1", "2", "einß"), ("1+1", "2", "zwei"), ("2+2", "4", "vier"))
    metrics = imported(path, tmp_path)
    assert metrics == {"questions": 2, "traces": 3, "dropped": 0}
    traces = read_rows(tmp_path / "out", "traces")
    questions = {row["question_id"]: row for row in read_rows(tmp_path / "out", "questions")}
    assert len({trace["trace_id"] for trace in traces}) == 3
    for trace in traces:
        assert RENDERER.decode(trace["token_ids"]) == trace["text"]
        explanation = RENDERER.split_completion(trace["completion_ids"])
        assert explanation.closed and explanation.ids == trace["token_ids"]
        assert questions[trace["question_id"]]["split"] == "train"


def test_bad_traces_are_named(tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "1+1", "solution": "2", "reasoning": "a"}\n')
    for path, message in [
        ([("1+1", "2", "a"), ("1+1", "3", "b")], "rows 1 and 2 give one question two solutions"),
        ([("1+1", "2", "a</explain>")], "row 1: the trace contains </explain>"),
        ([("1+1", "2", "")], r"row 1: the trace \(field 'trace'\) is empty"),
        (other, r"row 1: no field 'trace' .* in a trace file, rename it\. \(1 of 1 rows"),
        (tmp_path / "none.jsonl", "no such file"),
    ]:
        with pytest.raises(UserError, match=message):
            imported(path if isinstance(path, Path) else write(tmp_path, *path), tmp_path)


def test_one_bad_trace_of_many_is_dropped_and_listed(tmp_path: Path) -> None:
    good = [(f"{i}+{i}", str(2 * i), "so") for i in range(60)]
    path = write(tmp_path, *good, ("1+7", "8", ""), ("2+2", "5", "no"), ("9+9", "18", "</explain>"))
    metrics = imported(path, tmp_path)
    assert metrics == {"questions": 60, "traces": 60, "dropped": 3}
    dropped = [(row["row"], row["reason"]) for row in read_rows(tmp_path / "out", "dropped")]
    assert dropped == [(61, "empty"), (62, "duplicate"), (63, "tags")]


def test_traces_may_be_conversations(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    turns = [{"role": "user", "content": "1+1"},
             {"role": "assistant", "content": "2", "reasoning_content": "one and one"}]  # fmt: skip
    path.write_text(json.dumps({"messages": turns}))
    assert imported(path, tmp_path)["traces"] == 1
    (trace,) = read_rows(tmp_path / "out", "traces")
    assert trace["text"] == "one and one"


def test_a_data_sets_own_traces_are_like_imported_ones(tmp_path: Path) -> None:
    data = DataConfig(source="arithmetic", n_train=8, n_validation=3, n_test=3)
    prepare_questions(data, RENDERER, tmp_path / "data", Progress())
    questions = read_rows(tmp_path / "data", "questions")
    own_traces(questions, "dataset", RENDERER, tmp_path / "out")
    train = [row for row in questions if row["split"] == "train"]
    assert read_rows(tmp_path / "out", "questions") == train
    assert {row["grader"] for row in train} == {"arithmetic"}
    for question, trace in zip(train, read_rows(tmp_path / "out", "traces"), strict=True):
        assert trace["trace_id"] == f"{question['question_id']}-0"
        assert (trace["teacher"], trace["seed"], trace["sample"]) == ("dataset", 0, 0)
        assert RENDERER.decode(trace["token_ids"]) == trace["text"] == question["trace"]
        assert trace["prompt_tokens"] == question["prompt_tokens"]
        texts = question["question"], question["solution"]
        target = RENDERER.teacher_sft_row(*texts, question["trace"])
        assert RENDERER.teacher_prompt(*texts) + trace["completion_ids"] == target.input_ids
        assert trace["completion_tokens"] == len(trace["completion_ids"])
    untraced = [row | ({"trace": None} if row["split"] == "train" else {}) for row in questions]
    with pytest.raises(UserError, match=r"no training question has a trace.*data\.fields\.trace"):
        own_traces(untraced, "dataset", RENDERER, tmp_path / "none")
    assert not (tmp_path / "none").exists()


# ---------------------------------------------------------------- explanations
GOOD = {"question": "q", "solution": "s", "explanation": "e"}
BAD_EXPLANATIONS = {
    '{"question": "q\\ud83d", "solution": "s", "explanation": "e"}': "lone surrogate",
    '{"question": "q", "solution": "s", "explanation": "e\\udc00"}': "explanation has the lone",
    '{"question": "q", "solution": "s", "explanation": NaN}': "explanation must be text",
    '{"question": "q", "solution": NaN, "explanation": "e"}': "empty solution",
    '{"question": "q", "solution": true, "explanation": "e"}': "the solution .* is bool",
    '{"question": 1.50, "solution": "s", "explanation": "e"}': "question must be text",
    '{"question": "q", "solution": "s", "explanation": "e", "closed": 7}': "closed must be true",
    '{"question": "q", "question": "r", "solution": "s", "explanation": "e"}': "two fields",
    json.dumps(GOOD)[:-1] + ', "x": ' + "[" * 10**5 + "]" * 10**5 + "}": "nested too deeply",
    json.dumps(GOOD)[:-1]: "cut off",
}


@pytest.mark.parametrize("line", BAD_EXPLANATIONS, ids=range(len(BAD_EXPLANATIONS)))
def test_a_bad_explanation_is_one_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line)
    message = rf"rows\.jsonl, row 2: .*{BAD_EXPLANATIONS[line]}"
    with pytest.raises(UserError, match=message) as error:
        read_explanations(path, load_format("rlt"))
    assert "\n" not in str(error.value)


def test_explanations_may_be_empty_and_unread_fields_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {**GOOD, "explanation": "", "closed": None}
    path.write_text((json.dumps(row)[:-1] + ', "n": ' + "9" * 5000 + "}\n") * 2)
    first, second = read_explanations(path, load_format("rlt"))
    assert (first.text, first.closed, first.sample, second.sample) == ("", True, 0, 1)


# ---------------------------------------------------------------- scores
def test_scores_are_read_from_pandas_files(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    table = {"question_id": ["a", "a"], "sample": [0.0, 1.0], "reward": pa.array([1, 2])}
    pq.write_table(pa.table(table), path)
    import_scores(path, "theirs", tmp_path)
    rows = read_rows(tmp_path, "scores")
    assert [(row["trace_id"], row["rank"]) for row in rows] == [("a-0", 2), ("a-1", 1)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question_id": "a", "reward": NaN}', "reward must be a number"),
        ('{"question_id": "a", "reward": 1e400}', "reward is inf"),
        ('{"question_id": "a", "reward": "x"}', "reward must be a number"),
        ('{"question_id": "a", "reward": 1, "sample": 0.5}', "sample"),
        ('{"question_id": "a", "reward": 1, "sample": ' + "9" * 5000 + "}", "sample"),
        ('{"question_id": null, "reward": 1}', "question_id is empty"),
        ('{"question_id": "\\ud83d", "reward": 1}', "lone surrogate"),
        ('{"reward": 1}', "no field 'question_id'"),
    ],
)
def test_a_bad_score_is_one_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"question_id": "b", "reward": 1}\n' + line + "\n")
    with pytest.raises(UserError, match=rf"scores\.jsonl, row 2: .*{message}"):
        import_scores(path, "theirs", tmp_path)
