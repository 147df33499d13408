"""One item to one verdict, in this process. `Grader` does it where a hang can be killed."""

from __future__ import annotations

import json
from dataclasses import replace

from rlt_core.grading import countdown, mathematics
from rlt_core.grading.text import (
    MAX_ANSWER_CHARS,
    boxed,
    choice_letter,
    hashed,
    last_number,
    marked_answer,
    parse_number,
)
from rlt_core.grading.types import OUTCOMES, Grade, GradeItem, Outcome


def _verdict(right: bool, extracted: str) -> Grade:
    outcome: Outcome = "correct" if right else "wrong"
    return Grade(outcome, extracted[:MAX_ANSWER_CHARS])


def _arithmetic(solution: str | None, answer: str) -> Grade:
    expected = parse_number(answer)
    if expected is None:
        return Grade("ungradable")
    given = None if solution is None else last_number(marked_answer(solution) or solution)
    return Grade("unparsable") if given is None else _verdict(given == expected, str(given))


def _math(solution: str | None, answer: str) -> Grade:
    expected = mathematics.parse_answer(answer)
    if not expected:
        return Grade("ungradable")
    given = [] if solution is None else mathematics.parse_solution(solution)
    if not given:
        return Grade("unparsable")
    return _verdict(mathematics.same(expected, given), mathematics.shown(given))


def _countdown(solution: str | None, metadata: str | None) -> Grade:
    task = countdown.parse_task(metadata)
    if task is None:
        return Grade("ungradable")
    given = None if solution is None else countdown.read_expression(solution)
    return Grade("unparsable") if given is None else _verdict(countdown.solves(given, task), given)


def _multiple_choice(solution: str | None, answer: str) -> Grade:
    given = None if solution is None else choice_letter(solution)
    return Grade("unparsable") if given is None else _verdict(given == answer.strip(), given)


def accepted_answers(metadata: str | None) -> list[str]:
    """The answers of which any is right, where a data set gives several."""
    if metadata is None or '"accepted"' not in metadata:
        return []
    answers: list[str] = json.loads(metadata)["accepted"]
    return answers


def grade(item: GradeItem) -> Grade:
    """The verdict on one item. May hang or raise inside math-verify: see `Grader`."""
    if accepted := accepted_answers(item.metadata):
        grades = [grade(replace(item, answer=answer, metadata=None)) for answer in accepted]
        return min(grades, key=lambda grade: OUTCOMES.index(grade.outcome))
    if item.grader == "countdown":
        return _countdown(item.solution, item.metadata)
    if item.grader == "none" or item.answer is None:
        return Grade("ungradable")
    check = {"math": _math, "arithmetic": _arithmetic, "multiple_choice": _multiple_choice}
    return check[item.grader](item.solution, item.answer)


def extract_answer(solution: str, grader: str) -> str | None:
    """The answer that a grader reads from a solution; None if it reads none."""
    if grader == "arithmetic":
        number = last_number(marked_answer(solution) or solution)
        return None if number is None else str(number)
    if grader == "countdown":
        return countdown.read_expression(solution)
    if grader == "multiple_choice":
        return choice_letter(solution)
    if grader == "math":
        parsed = mathematics.parse_solution(solution)
        return mathematics.shown(parsed)[:MAX_ANSWER_CHARS] if parsed else None
    return None


def answer_of(solution: str) -> str | None:
    r"""The final answer in a data set's solution, for data without an answer column.

    The last `#### x`, else the last \boxed{x}, else the whole text if it is a number or
    mathematics without words, else None: such a question is ungradable.
    """
    marked = hashed(solution) or boxed(solution)
    if marked is not None:
        return marked
    text = solution.strip()
    if parse_number(text) is not None:
        return text
    return text if len(text) <= MAX_ANSWER_CHARS and mathematics.is_answer(text) else None
