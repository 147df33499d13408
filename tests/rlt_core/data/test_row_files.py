"""Files of explanations and of scores: every row is used, or one line names file, row and fix."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlt_core.data.imports import import_scores, read_explanations
from rlt_core.errors import UserError
from rlt_core.prompts.format import load_format
from rlt_core.rows import read_rows

GOOD = {"question": "q", "solution": "s", "explanation": "e"}
ROWS = {
    '{"question": "q\\ud83d", "solution": "s", "explanation": "e"}': "lone surrogate",
    '{"question": "q", "solution": "s", "explanation": "e\\udc00"}': "explanation has the lone",
    '{"question": "q", "solution": "s", "explanation": NaN}': "explanation must be text",
    '{"question": "q", "solution": NaN, "explanation": "e"}': "empty solution",
    '{"question": "q", "solution": 1.50, "explanation": "e"}': "solution must be text",
    '{"question": "q", "solution": "s", "explanation": "e", "closed": 7}': "closed must be true",
    '{"question": "q", "question": "r", "solution": "s", "explanation": "e"}': "two fields",
    json.dumps(GOOD)[:-1] + ', "x": ' + "[" * 10**5 + "]" * 10**5 + "}": "nested too deeply",
    json.dumps(GOOD)[:-1]: "cut off",
}


@pytest.mark.parametrize("line", ROWS)
def test_a_bad_explanation_is_one_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line)
    with pytest.raises(UserError, match=rf"rows\.jsonl, row 2: .*{ROWS[line]}") as error:
        read_explanations(path, load_format("rlt"))
    assert "\n" not in str(error.value)


def test_explanations_may_be_empty_and_unread_fields_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {**GOOD, "explanation": "", "closed": None}
    path.write_text((json.dumps(row)[:-1] + ', "n": ' + "9" * 5000 + "}\n") * 2)
    first, second = read_explanations(path, load_format("rlt"))
    assert (first.text, first.closed, first.sample, second.sample) == ("", True, 0, 1)


def test_scores_are_read_from_what_pandas_writes(tmp_path: Path) -> None:
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
