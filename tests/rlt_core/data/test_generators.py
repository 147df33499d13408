"""Generated questions: right, distinct, seeded, disjoint, and held out where they must be."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rlt_core.config import DataConfig
from rlt_core.data.dedup import require_disjoint
from rlt_core.data.generators import arithmetic
from rlt_core.data.generators.countdown import (
    countdown_questions,
    countdown_rows,
    small_countdown_rows,
)
from rlt_core.data.prepare import prepare_questions
from rlt_core.errors import UserError
from rlt_core.grading import GradeItem
from rlt_core.grading.grade import grade
from rlt_core.progress import Progress
from rlt_core.prompts.renderer import IGNORED
from rlt_core.rows import read_rows
from tests.rlt_core.data.prepared import RENDERER

STEP = re.compile(r"(\d+)\+(\d)=(\d+)")
Row = dict[str, Any]


def outcome(row: Row) -> str:
    item = GradeItem(row["solution"], row["answer"], row["grader"], row["metadata"])
    return grade(item).outcome


def prepared(data: DataConfig, out: Path, tested: list[Row] | None = None) -> tuple[list[Row], Row]:
    metrics = prepare_questions(data, RENDERER, out, Progress(), {}, tested or [])
    return read_rows(out, "questions"), metrics


# ---------------------------------------------------------------- arithmetic
def wrong_steps(trace: str) -> int:
    return sum(int(a) + int(b) != int(c) for a, b, c in STEP.findall(trace))


def test_solutions_are_true_and_questions_differ_in_more_than_order() -> None:
    rows = arithmetic.arithmetic_rows(500, seed=3)
    assert len({arithmetic.operands_of(row.question) for row in rows}) == 500
    assert all(sum(map(int, row.question.split("+"))) == int(row.solution) for row in rows)
    assert rows == arithmetic.arithmetic_rows(500, seed=3)
    assert rows != arithmetic.arithmetic_rows(500, seed=4)


def test_a_right_trace_ends_at_the_sum_and_errors_are_off_by_one() -> None:
    rng = Random(0)
    for _ in range(300):
        operands = tuple(rng.randint(10, 99) for _ in range(3))
        right = arithmetic.trace_of(operands, 0.0, rng)
        assert wrong_steps(right) == 0 and right.split(";")[-1] == str(sum(operands))
        steps = STEP.findall(arithmetic.trace_of(operands, 0.5, rng))
        assert steps
        for a, b, c in steps:
            assert abs(int(a) + int(b) - int(c)) <= 1


def test_traces_are_of_every_quality() -> None:
    traces = [row.trace or "" for row in arithmetic.arithmetic_rows(1000, seed=0)]
    errors = [wrong_steps(trace) for trace in traces if STEP.search(trace)]
    assert {0, 1, 2, 3} <= set(errors)
    terse = sum(not STEP.search(trace) for trace in traces)
    assert 30 < terse < 70, "one trace in twenty is terse"


def test_documents_stay_clear_of_held_out_questions_in_any_order() -> None:
    documents = list(arithmetic.base_documents(2000, 0, RENDERER, held_out=["What is 2?"]))
    asked = [q for q in map(_question, documents) if q]
    assert len(asked) > 400
    reordered = ["+".join(reversed(question.split("+"))) for question in asked]
    clear = arithmetic.base_documents(2000, 0, RENDERER, held_out=reordered)
    later = {arithmetic.operands_of(q) for q in map(_question, clear) if q}
    assert not later & {arithmetic.operands_of(question) for question in asked}


def _question(document: arithmetic.Row) -> str | None:
    assert IGNORED not in document.labels and document.labels == document.input_ids
    assert document.input_ids[-1] == RENDERER.end_of_turn
    found = re.search(r"user\n(\d+\+\d+\+\d+)<", RENDERER.tokenizer.decode(document.input_ids))
    return found and found[1]


def test_s1_traces_are_right_and_check_themselves() -> None:
    plain = [row.trace or "" for row in arithmetic.arithmetic_rows(50, 0)]
    rows = arithmetic.arithmetic_rows(50, 0, "s1")
    for row in rows:
        right, left, total, *check = (row.trace or "").split(";")
        assert wrong_steps(right) == wrong_steps(left) == 0
        assert total == row.solution and check[-1] == row.solution and len(check) == 3
    assert sum(len(row.trace or "") for row in rows) > sum(map(len, plain))


def test_sky_t1_traces_arrive_and_keep_some_wrong_steps() -> None:
    rows = arithmetic.arithmetic_rows(400, 0, "sky-t1")
    assert all((row.trace or "").endswith(f";{row.solution}") for row in rows)
    assert all(len((row.trace or "").split(";")) == 3 for row in rows), "one style"
    wrong = sum(wrong_steps(row.trace or "") > 0 for row in rows)
    assert 0 < wrong < 200, "errors that cancel each other are not seen"


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
def test_countdown_problems_are_solved_by_their_solutions() -> None:
    first, other = (countdown_questions(30, seed) for seed in (0, 7))
    assert first == countdown_questions(30, 0)
    assert len({question["question_id"] for question in (*first, *other)}) == 60
    for question in first + other:
        numbers = json.loads(question["metadata"])["numbers"]
        assert len(numbers) in (3, 4) and all(str(n) in question["question"] for n in numbers)
        assert outcome(question) == "correct"


def test_small_problems_are_solved_by_their_solutions() -> None:
    rows = small_countdown_rows(500, 1)
    assert {outcome(asdict(row)) for row in rows} == {"correct"}
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
