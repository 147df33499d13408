"""The traces that came with a data set, as a table: the questions as they are, or a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlt_core.config import DataConfig
from rlt_core.data.imports import own_traces
from rlt_core.data.prepare import prepare_questions
from rlt_core.errors import UserError
from rlt_core.models import tiny_tokenizer
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.rows import read_rows

FORMAT = load_format("tiny")
PROMPTER = Renderer(FORMAT, tiny_tokenizer(FORMAT))


def test_questions_stay_as_they_are_and_traces_are_like_imported_ones(tmp_path: Path) -> None:
    data = DataConfig(source="arithmetic", n_train=8, n_validation=3, n_test=3)
    prepare_questions(data, PROMPTER, tmp_path / "data", Progress())
    questions = read_rows(tmp_path / "data", "questions")
    own_traces(questions, "dataset", PROMPTER, tmp_path / "out")
    train = [row for row in questions if row["split"] == "train"]
    assert read_rows(tmp_path / "out", "questions") == train
    assert {row["grader"] for row in train} == {"arithmetic"}
    for question, trace in zip(train, read_rows(tmp_path / "out", "traces"), strict=True):
        assert trace["trace_id"] == f"{question['question_id']}-0"
        assert (trace["teacher"], trace["seed"], trace["sample"]) == ("dataset", 0, 0)
        assert trace["text"] == question["trace"]
        assert PROMPTER.decode(trace["token_ids"]) == trace["text"]
        assert trace["prompt_tokens"] == question["prompt_tokens"]
        whole = PROMPTER.teacher_prompt(question["question"], question["solution"])
        target = PROMPTER.teacher_sft_row(
            question["question"], question["solution"], question["trace"]
        )
        assert whole + trace["completion_ids"] == target.input_ids
        assert trace["completion_tokens"] == len(trace["completion_ids"])


def test_a_data_set_without_traces_is_refused(tmp_path: Path) -> None:
    data = DataConfig(source="arithmetic", n_train=4, n_validation=2, n_test=2)
    prepare_questions(data, PROMPTER, tmp_path / "data", Progress())
    questions = [
        row | ({"trace": None} if row["split"] == "train" else {})
        for row in read_rows(tmp_path / "data", "questions")
    ]
    with pytest.raises(UserError, match=r"no training question has a trace.*data\.fields\.trace"):
        own_traces(questions, "dataset", PROMPTER, tmp_path / "out")
    assert not (tmp_path / "out").exists()
