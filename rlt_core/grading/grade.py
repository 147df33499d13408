"""One item to one verdict, in this process. `Grader` does it where a hang can be killed."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

from rlt_core.extensions import is_path, load
from rlt_core.grading import countdown
from rlt_core.grading.answers import parse
from rlt_core.grading.choice import choice_letter
from rlt_core.grading.compare import same
from rlt_core.grading.normalize import normalized
from rlt_core.grading.text import (
    MAX_ANSWER_CHARS,
    is_bare,
    last_number,
    marked_answer,
    mathematics,
    read_answer,
)
from rlt_core.grading.types import OUTCOMES, Grade, GradeItem
from rlt_core.grading.values import Answer


def _verdict(right: bool, extracted: str) -> Grade:
    return Grade("correct" if right else "wrong", extracted[:MAX_ANSWER_CHARS])


def _parse_gold(answer: str) -> Answer | None:
    """A gold answer; data sets leave `#### 12` and boxes in their answers, too."""
    return parse(marked_answer(answer) or answer)


def _parse_given(solution: str | None, gold: Answer) -> Answer | None:
    """The answer of a solution; where it is prose and the gold is not, the only mathematics in
    it."""
    read = read_answer(solution) if solution else None
    given = parse(read) if read else None
    if read and given and given.kind == "words" and gold.kind != "words":
        found = mathematics(read)
        return (parse(found[0]) if len(found) == 1 else None) or given
    return given


def _math(solution: str | None, answer: str) -> Grade:
    gold = _parse_gold(answer)
    if gold is None:
        return Grade("ungradable")
    given = _parse_given(solution, gold)
    return Grade("unparsable") if given is None else _verdict(same(gold, given), given.text)


def _last_number(solution: str) -> Fraction | None:
    marked = marked_answer(solution)
    return last_number(solution if marked is None else marked)


def _arithmetic(solution: str | None, answer: str) -> Grade:
    gold = _parse_gold(answer)
    expected = gold.parts[0] if gold and gold.kind == "scalar" else None
    if not isinstance(expected, Fraction):
        return Grade("ungradable")
    given = None if solution is None else _last_number(solution)
    return Grade("unparsable") if given is None else _verdict(given == expected, str(given))


def _countdown(solution: str | None, metadata: str | None) -> Grade:
    task = countdown.parse_task(metadata)
    if task is None:
        return Grade("ungradable")
    given = None if solution is None else countdown.read_expression(solution)
    return Grade("unparsable") if given is None else _verdict(countdown.solves(given, task), given)


def _multiple_choice(solution: str | None, answer: str, metadata: str | None) -> Grade:
    expected = choice_letter(answer, metadata)
    if expected is None:
        return Grade("ungradable")
    given = None if solution is None else choice_letter(solution, metadata)
    return Grade("unparsable") if given is None else _verdict(given == expected, given)


def _own(item: GradeItem) -> Grade:
    """The verdict of the user's own grader: right, wrong, or None for no answer."""
    if item.solution is None:
        return Grade("unparsable")
    right = load(item.grader)(item.solution, item.answer)
    return Grade("unparsable") if right is None else _verdict(bool(right), item.solution)


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
    if is_path(item.grader):
        return _own(item)
    if item.grader == "multiple_choice":
        return _multiple_choice(item.solution, item.answer, item.metadata)
    return (_arithmetic if item.grader == "arithmetic" else _math)(item.solution, item.answer)


def grades_itself(item: GradeItem) -> bool:
    r"""Whether an item's gold answer is correct by its own grader, as \boxed{…} and as
    `Answer: …`. The item's solution is not read; countdown needs its numbers and target only."""
    if item.grader == "countdown":
        return grade(replace(item, solution="")).outcome != "ungradable"
    if is_path(item.grader):
        return grade(replace(item, solution=item.answer)).outcome == "correct"
    answer = marked_answer(item.answer or "") or item.answer
    return all(
        grade(replace(item, solution=solution)).outcome == "correct"
        for solution in (rf"So we get \boxed{{{answer}}}.", f"So we are done.\nAnswer: {answer}")
    )


def extract_answer(solution: str, grader: str) -> str | None:
    """The answer that a grader reads from a solution; None if it reads none."""
    if grader == "arithmetic":
        number = _last_number(solution)
        return None if number is None else str(number)
    if grader == "countdown":
        return countdown.read_expression(solution)
    if grader == "multiple_choice":
        return choice_letter(solution)
    if grader == "math":
        read = read_answer(solution)
        return normalized(read)[:MAX_ANSWER_CHARS] if read else None
    return None


def answer_of(solution: str) -> str | None:
    r"""The final answer in a data set's solution, for data without an answer column.

    What the solution marks (the reader of markers is that of graded solutions), else all of it if
    it is mathematics without words, else None: such a question is ungradable.
    """
    marked = marked_answer(solution)
    if marked is not None:
        return marked or None
    text = solution.strip()
    return text if text and len(text) <= MAX_ANSWER_CHARS and is_bare(text) else None
