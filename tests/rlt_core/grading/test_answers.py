"""Tables of answers with a mathematician's verdict, and right answers against themselves."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_core.grading import GradeItem, answer_of
from rlt_core.grading.answers import parse
from rlt_core.grading.grade import grade, grades_itself
from rlt_core.grading.markers import read_answer


def lines(name: str) -> list:
    text = (Path(__file__).parent / name).read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


CASES, PAIRS, READINGS, GOLDS = map(
    lines, ("cases.jsonl", "pairs.jsonl", "readings.jsonl", "golds.jsonl")
)


def is_correct(solution: str, answer: str | None, grader: str = "math", metadata=None) -> bool:
    return grade(GradeItem(solution, answer, grader, metadata)).outcome == "correct"


def test_every_case_is_graded_right() -> None:
    wrong = [
        case
        for case in (*CASES, *READINGS)
        if is_correct(case["solution"], case["answer"], case["grader"], case.get("metadata"))
        != case["correct"]
    ]
    assert not wrong, wrong
    assert Counter(case["correct"] for case in CASES) == {True: 55, False: 31}


@pytest.mark.parametrize(
    "form", [r"So we get \boxed{%s}.", "Done.\n\n**Answer:** $%s$", "Answer: %s"]
)
def test_pairs_are_equal_or_not_in_both_directions(form: str) -> None:
    """`$` belongs to money in some answers, which nobody sets inside `$…$`."""
    wrong = [
        (gold, given, equal)
        for one, other, equal in PAIRS
        for gold, given in ((one, other), (other, one))
        if not ("$%s$" in form and "$" in given)
        and is_correct(form.replace("%s", given), gold) != equal
    ]
    assert not wrong, wrong


def test_every_gold_answer_grades_itself_correct() -> None:
    golds = [*GOLDS, *(gold for pair in PAIRS for gold in pair[:2])]
    assert not [gold for gold in golds if not grades_itself(GradeItem(None, gold, "math"))]
    for case in CASES:
        assert grades_itself(GradeItem(None, case["answer"], case["grader"]))


def test_an_answer_that_its_grader_cannot_read_back_does_not_grade_itself() -> None:
    for gold in (r"\frac{1", "x" * 1001, "**", r"\boxed{", " "):
        assert not grades_itself(GradeItem(None, gold, "math"))
    assert not grades_itself(GradeItem(None, "four", "multiple_choice"))
    assert not grades_itself(GradeItem(None, "x + 1", "arithmetic"))
    assert not grades_itself(GradeItem(None, None, "countdown", "{}"))
    assert grades_itself(GradeItem(None, None, "countdown", '{"numbers": [1, 2], "target": 3}'))


TASK = '{"numbers": [1, 2], "target": 3}'
GRADED_BY = {"math": "3", "arithmetic": "3", "countdown": None, "multiple_choice": "C"}


@given(st.text(alphabet=r"0123456789xyz+-*/^=<>()[]{},.\$%_ :&|", min_size=1, max_size=20))
def test_any_answer_is_parsed_and_no_reader_raises(text: str) -> None:
    parse(text)
    for form in (text, rf"\boxed{{{text}}}", f"Answer: {text}", f"#### {text}"):
        answer_of(form)
        for grader, gold in GRADED_BY.items():
            if grader != "math":
                grade(GradeItem(form, gold, grader, TASK))


LONG = 50_000
HOSTILE = [
    "{", "}", "\\", "$", "$1", "(", "[", "1,", "1/", "1.", "-", "+1", " ", "\n", "\0", "*", "`",
    r"\boxed{", r"\boxed{1} and ", r"\frac", r"\[ ", r"\(", r"\begin{", r"\text{", "answer: ",
    "answer is ", "answer ", "Answer:\n", "#### ", "#### x\n", "<answer>", "</think>", "<think>",
    "A or ", "(A) ", "½", "√", "²", "\ud800", "x=1,", "3x4 ", "answer (", "x. ",
]  # fmt: skip


def test_readers_are_linear_in_the_length_of_hostile_texts() -> None:
    start = time.process_time()
    for piece in HOSTILE:
        text = piece * (LONG // len(piece))
        read_answer(text)
        answer_of(text)
        for grader in ("arithmetic", "countdown", "multiple_choice"):
            grade(GradeItem(text, GRADED_BY[grader], grader, TASK))
    assert time.process_time() - start < 60  # a few seconds; hours if one were quadratic


NESTED = [
    r"\sqrt{" * 160 + "2" + "}" * 160, "(1," * 240 + "2" + ")" * 240, "[" * 490 + "]" * 490,
    "^(" * 300 + ")" * 300, r"\pm 1 " * 100, "x=" * 300 + "1", "1<" * 300 + "2", "1e999999999",
    r"\text{" * 100 + "}" * 100, "\ud800", "1" + " " * 900 + "2", "0.(", r"\frac{0}{0}", "()",
    r"\begin{pmatrix}", r"x \in ", r"\cup", r"\pm", "%", "=", "<", r"\{", "_", "^",
]  # fmt: skip


@pytest.mark.parametrize("answer", NESTED)
def test_odd_answers_are_not_correct_and_do_not_crash(answer: str) -> None:
    assert not is_correct(rf"\boxed{{{answer}}}", "3")
