"""Sources of the experiments: in others' manner, of small problems, and disjoint."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rlt_core.config import DataConfig
from rlt_core.data.dedup import require_disjoint
from rlt_core.data.generators import arithmetic
from rlt_core.data.generators.countdown import countdown_rows, small_countdown_rows
from rlt_core.data.prepare import prepare_questions
from rlt_core.data.rawrow import RawRow
from rlt_core.errors import UserError
from rlt_core.grading import GradeItem
from rlt_core.grading.grade import grade
from rlt_core.models import tiny_tokenizer
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.rows import read_rows

PROMPTER = Renderer(load_format("tiny"), tiny_tokenizer(load_format("tiny")))
Row = dict[str, Any]


def outcome(row: RawRow) -> str:
    assert row.grader
    item = GradeItem(
        solution=row.solution, answer=row.answer, grader=row.grader, metadata=row.metadata
    )
    return grade(item).outcome


def prepared(data: DataConfig, out: Path, tested: list[Row] | None = None) -> tuple[list[Row], Row]:
    out.mkdir()
    metrics = prepare_questions(data, PROMPTER, out, Progress(), {}, tested or [])
    return read_rows(out, "questions"), metrics


# ---------------------------------------------------------------- arithmetic in others' manner
def test_s1_traces_are_right_and_check_themselves() -> None:
    plain = [row.trace or "" for row in arithmetic.arithmetic_rows(50, 0)]
    rows = arithmetic.arithmetic_rows(50, 0, "s1")
    for row in rows:
        right, left, total, *check = (row.trace or "").split(";")
        for step in (*right.split(), *left.split()):
            start, _, written = step.partition("=")
            a, b = start.split("+")
            assert int(a) + int(b) == int(written)
        assert total == row.solution and check[-1] == row.solution and len(check) == 3
    assert sum(len(row.trace or "") for row in rows) > sum(map(len, plain))


def test_sky_t1_traces_arrive_and_keep_some_wrong_steps() -> None:
    rows = arithmetic.arithmetic_rows(400, 0, "sky-t1")
    assert all((row.trace or "").endswith(f";{row.solution}") for row in rows)
    assert all(len((row.trace or "").split(";")) == 3 for row in rows), "one style"
    right = {arithmetic.trace_of(_operands(row), 0.0, Random(0)) for row in rows}
    kept = [row.trace for row in rows if row.trace not in right]
    assert 0 < len(kept) < 200, "errors that cancel each other are not seen"


def _operands(row: RawRow) -> tuple[int, ...]:
    return tuple(map(int, row.question.split("+")))


@pytest.mark.parametrize("manner", ["s1", "sky-t1"])
def test_other_data_sets_have_none_of_the_test_in_any_order(tmp_path: Path, manner: str) -> None:
    data = DataConfig(source=f"arithmetic-{manner}", n_train=60, n_validation=0, n_test=0)
    free, _ = prepared(data, tmp_path / "free")
    taken = [{**row, "question": "+".join(row["question"].split("+")[::-1]), "split": "test"}
             for row in free[:25]]  # fmt: skip
    kept, metrics = prepared(data, tmp_path / "kept", taken)
    assert len(kept) == 60 and metrics["problems"] == 60
    problems = {arithmetic.operands_of(row["question"]) for row in kept}
    assert not problems & {arithmetic.operands_of(row["question"]) for row in taken}
    assert {row["reason"] for row in read_rows(tmp_path / "kept", "dropped")} == {"overlap"}


# ---------------------------------------------------------------- countdown
def test_small_problems_are_solved_by_their_solutions() -> None:
    rows = small_countdown_rows(500, 1)
    assert {outcome(row) for row in rows} == {"correct"}
    problems = set()
    for row in rows:
        asked = json.loads(row.metadata or "")
        numbers, _, target = row.question.partition(">")
        assert sorted(map(int, numbers.split(","))) == asked["numbers"]
        assert row.answer == target and int(target) == asked["target"] >= 0
        assert row.solution.replace("-", "+").split("+") == numbers.split(",")
        problems.add((*asked["numbers"], asked["target"]))
    assert len(problems) == 500
    assert rows == small_countdown_rows(500, 1) != small_countdown_rows(500, 2)


def test_more_small_problems_than_there_are() -> None:
    with pytest.raises(UserError, match=r"countdown-small has \d+ problems"):
        small_countdown_rows(1_000_000, 0)


@pytest.mark.parametrize(
    ("source", "n_train", "n_test"),
    [
        ("countdown", 300, 100),
        ("countdown-small", 1600, 100),
        pytest.param("countdown", 16_000, 1000, marks=pytest.mark.slow),
    ],
)
def test_countdown_splits_share_no_problem(
    tmp_path: Path, source: str, n_train: int, n_test: int
) -> None:
    data = DataConfig(source=source, n_train=n_train, n_validation=0, n_test=n_test)
    rows, metrics = prepared(data, tmp_path / "out")
    problems: dict[str, set[tuple[int, ...]]] = {"train": set(), "test": set()}
    for row in rows:
        asked = json.loads(row["metadata"])
        problems[row["split"]].add((*sorted(asked["numbers"]), asked["target"]))
    assert len(problems["train"]) == n_train and len(problems["test"]) == n_test
    assert not problems["train"] & problems["test"]
    assert metrics["problems"] == n_train + n_test


def test_problems_in_two_splits_or_in_an_evaluation_set_are_found() -> None:
    first, second = (asdict(row) for row in countdown_rows(2, 0))
    metadata = json.loads(first["metadata"])
    moved = json.dumps({**metadata, "numbers": metadata["numbers"][::-1]})
    train = {**first, "split": "train"}
    assert require_disjoint([train, {**second, "split": "test"}], {"task": [second]}) == 2
    with pytest.raises(RuntimeError, match="is in train and in test"):
        require_disjoint([train, {**first, "metadata": moved, "split": "test"}], {})
    with pytest.raises(RuntimeError, match="evaluation set task"):
        require_disjoint([train], {"task": [{**first, "metadata": moved}]})
