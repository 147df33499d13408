"""Verdicts of each grader: right, wrong, unparsable, ungradable."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_core.grading import OUTCOMES, GradeItem, answer_of, has_answer
from rlt_core.grading.grade import grade
from rlt_core.grading.markers import last_number, marked_answer
from rlt_core.grading.values import number


def outcome(solution: str | None, answer: str | None, grader: str, **task: object) -> str:
    metadata = json.dumps(task) if task else None
    return grade(GradeItem(solution, answer, grader, metadata)).outcome


@given(st.fractions())
def test_every_fraction_reads_back_exactly(value: Fraction) -> None:
    assert number(str(value)) == value
    assert last_number(f"first 12, then {value}.") == value


@given(st.integers(min_value=0, max_value=10**12))
def test_thousands_separators_do_not_change_a_number(value: int) -> None:
    assert number(f"{value:,}") == number(f"{value}.00") == value


@pytest.mark.parametrize(
    ("solution", "verdict"),
    [
        ("142", "correct"),
        ("The answer is 142.", "correct"),
        ("\N{MINUS SIGN}142", "wrong"),
        ("284/2", "correct"),
        ("1 then 2\n#### 142", "correct"),
        ("we get \\boxed{142} from 7", "correct"),
        ("1142", "wrong"),
        ("x142", "unparsable"),
        ("142/0", "unparsable"),
        ("1/3", "wrong"),
        ("none", "unparsable"),
        ("", "unparsable"),
        (None, "unparsable"),
        ("9" * 1_000_000, "unparsable"),
        ("一百四十二 \N{GRINNING FACE} 142", "correct"),
    ],
)
def test_arithmetic(solution: str | None, verdict: str) -> None:
    assert outcome(solution, "142", "arithmetic") == verdict


@pytest.mark.parametrize(
    ("solution", "answer", "verdict"),
    [
        (r"\frac{3}{4}", r"\frac34", "correct"),
        (r"ANSWER: q - p", "-p+q", "correct"),
        ("Therefore, the final answer is: $\\boxed{204}$. I hope it is correct", "204", "correct"),
        (r"\boxed{3}", "4", "wrong"),
        ("I do not know", "4", "unparsable"),
        (None, "4", "unparsable"),
        (r"\boxed{" + "1+" * 1000 + "1}", "1001", "unparsable"),
        ("4", "", "ungradable"),
        ("4", None, "ungradable"),
    ],
)
def test_math(solution: str | None, answer: str | None, verdict: str) -> None:
    assert outcome(solution, answer, "math") == verdict


@pytest.mark.parametrize(
    ("solution", "verdict"),
    [
        ("4*(3+2) = 20", "correct"),
        ("Let us see.\n#### (2+3)\N{MULTIPLICATION SIGN}4", "correct"),
        ("First 3+2 is 5, then\n4*(3+2)", "correct"),
        ("4 * 5", "wrong"),
        ("20", "wrong"),
        ("4/(2-2)+3", "wrong"),
        ("2+3**4", "unparsable"),
        ("10**10**10", "unparsable"),
        ("__import__('os').getcwd()", "unparsable"),
        ("(2).real+3*4", "unparsable"),
        ("[2,3,4][0]", "unparsable"),
        ("2 if 3 else 4", "unparsable"),
        ("2.0+3*4", "unparsable"),
        ("True+3*4", "unparsable"),
        ("(" * 200 + "2" + ")" * 200, "unparsable"),
        ("-" * 250 + "2", "wrong"),
        ("+".join("1" * 500_000), "unparsable"),
        ("", "unparsable"),
        (None, "unparsable"),
    ],
)
def test_countdown(solution: str | None, verdict: str) -> None:
    assert outcome(solution, None, "countdown", numbers=[4, 2, 3], target=20) == verdict


def test_countdown_may_leave_numbers_out_only_if_the_task_says_so() -> None:
    task = {"numbers": [4, 2, 5, 5], "target": 20}
    assert outcome("4*5", None, "countdown", **task) == "wrong"
    assert outcome("4*5", None, "countdown", **task, use_all=False) == "correct"
    assert outcome("4+4*4", None, "countdown", **task, use_all=False) == "wrong"


def test_countdown_without_its_task_is_ungradable() -> None:
    for metadata in (None, "", "[]", "{}", '{"numbers": 3, "target": 1}', "no json"):
        assert grade(GradeItem("1+1", "2", "countdown", metadata)).outcome == "ungradable"


@pytest.mark.parametrize(
    ("solution", "verdict"),
    [("B", "correct"), ("Answer: C", "wrong"), ("A long story about nothing", "unparsable")],
)
def test_multiple_choice(solution: str, verdict: str) -> None:
    assert outcome(solution, "B", "multiple_choice") == verdict


def test_a_question_has_an_answer_unless_it_is_countdown() -> None:
    rows = [{"grader": g, "answer": a} for g in ("math", "none", "countdown") for a in ("4", None)]
    assert [has_answer(row) for row in rows] == [True, False, False, False, True, True]


def test_nothing_to_compare_with_is_ungradable() -> None:
    assert outcome("4", "4", "none") == "ungradable"
    assert outcome("4", None, "arithmetic") == "ungradable"
    assert outcome("4", "x", "arithmetic") == "ungradable"


def test_an_unknown_grader_is_refused() -> None:
    with pytest.raises(ValueError, match="sudoku"):
        GradeItem("4", "4", "sudoku")


@given(st.text(alphabet=st.characters(), max_size=60), st.sampled_from(["arithmetic", "countdown",
       "multiple_choice"]))  # fmt: skip
def test_any_text_gets_a_verdict(text: str, grader: str) -> None:
    metadata = '{"numbers": [1, 2], "target": 3}'
    gold = "C" if grader == "multiple_choice" else "3"
    verdict = grade(GradeItem(text, gold, grader, metadata))
    assert verdict.outcome in OUTCOMES
    assert (verdict.extracted is None) == (verdict.outcome == "unparsable")


@pytest.mark.parametrize(
    ("solution", "grader", "extracted"),
    [
        ("7 and 1,000.50", "arithmetic", "2001/2"),
        (r"\boxed{\frac12}", "math", r"\frac{1}{2}"),
        ("1+2 = 3", "countdown", "1+2 = 3"),
        ("I choose (c).", "multiple_choice", "C"),
    ],
)
def test_the_extracted_answer_is_what_was_read(solution: str, grader: str, extracted: str) -> None:
    answer = "C" if grader == "multiple_choice" else "3"
    metadata = '{"numbers": [1, 2], "target": 3}'
    assert grade(GradeItem(solution, answer, grader, metadata)).extracted == extracted


@pytest.mark.parametrize(
    ("solution", "verdict"),
    [(r"\boxed{18}", "correct"), (r"\boxed{\frac12}", "correct"), (r"\boxed{7}", "wrong"),
     ("", "unparsable")],
)  # fmt: skip
def test_any_accepted_answer_is_right(solution: str, verdict: str) -> None:
    assert outcome(solution, "18", "math", accepted=["18", "0.5"]) == verdict


@pytest.mark.parametrize("metadata", ['{"status": "accepted"}', '["accepted"]'])
def test_metadata_of_the_users_own_is_not_a_list_of_answers(metadata: str) -> None:
    assert grade(GradeItem("18", "18", "math", metadata)).outcome == "correct"


def test_a_box_may_hold_braces_and_the_last_one_counts() -> None:
    assert marked_answer(r"\boxed{1} or \boxed{\frac{1}{2}} or \boxed{\frac{1}") == ""
    assert marked_answer(r"\boxed{1} or \boxed{\frac{1}{2}}") == r"1, \frac{1}{2}"
    assert marked_answer(r"\boxed{1}. No: \boxed{\frac{1}{2}}") == r"\frac{1}{2}"


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("72/2 = 36\n#### 36", "36"),
        ("a \\boxed{x+1} b", "x+1"),
        ("\\boxed{5} wrong\n#### 6", "6"),
        (" 1,234 ", "1,234"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        ("x^2+1", "x^2+1"),
        ("print(sum(range(10)))", None),
        ("It depends on 2 things.", None),
        ("", None),
    ],
)
def test_the_answer_of_a_solution(solution: str, answer: str | None) -> None:
    assert answer_of(solution) == answer


@pytest.mark.parametrize(
    ("choices", "letter"),
    [("5", "E"), ('"ABCDE"', "E"), ('["a", "b", "c", "d", "e"]', "E"), ("4.5", "D"), ("null", "D")],
)
def test_choices_are_a_number_letters_or_texts_else_four(choices: str, letter: str) -> None:
    metadata = f'{{"choices": {choices}}}'
    item = GradeItem(f"The answer is {letter}.", letter, "multiple_choice", metadata)
    assert grade(item).outcome == "correct"
