"""Generated questions are right, distinct, seeded, and held out from the base model's documents."""

from __future__ import annotations

import json
import re
from random import Random

import pytest

from rlt_core.data.generators import arithmetic
from rlt_core.data.generators.countdown import countdown_questions
from rlt_core.grading import GradeItem
from rlt_core.grading.grade import grade
from rlt_core.models import tiny_tokenizer
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import IGNORED, Renderer

FORMAT = load_format("tiny")
PROMPTER = Renderer(FORMAT, tiny_tokenizer(FORMAT))
STEP = re.compile(r"(\d+)\+(\d)=(\d+)")


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
    documents = list(arithmetic.base_documents(2000, 0, PROMPTER, held_out=["What is 2?"]))
    asked = [q for q in map(_question, documents) if q]
    assert len(asked) > 400
    reordered = ["+".join(reversed(question.split("+"))) for question in asked]
    clear = arithmetic.base_documents(2000, 0, PROMPTER, held_out=reordered)
    later = {arithmetic.operands_of(q) for q in map(_question, clear) if q}
    assert not later & {arithmetic.operands_of(question) for question in asked}


def _question(document: arithmetic.Row) -> str | None:
    assert IGNORED not in document.labels and document.labels == document.input_ids
    assert document.input_ids[-1] == PROMPTER.end_of_turn
    found = re.search(r"user\n(\d+\+\d+\+\d+)<", PROMPTER.tokenizer.decode(document.input_ids))
    return found and found[1]


@pytest.mark.parametrize("seed", [0, 7])
def test_countdown_problems_are_solved_by_their_solutions(seed: int) -> None:
    questions = countdown_questions(30, seed)
    assert len({question["question_id"] for question in questions}) == 30
    assert questions == countdown_questions(30, seed)
    for question in questions:
        numbers = json.loads(question["metadata"])["numbers"]
        assert len(numbers) in (3, 4) and all(str(n) in question["question"] for n in numbers)
        item = GradeItem(
            question["solution"], question["answer"], question["grader"], question["metadata"]
        )
        assert grade(item).outcome == "correct"


def test_seeds_give_other_countdown_problems() -> None:
    ids = [{q["question_id"] for q in countdown_questions(30, seed)} for seed in (0, 1)]
    assert not ids[0] & ids[1]
