"""Grade one solution in this process. `Grader` does it in a process that can be killed."""

import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, get_args

from rlt_core.extensions import is_path, load
from rlt_core.grading import countdown
from rlt_core.grading.answers import Answer, parse
from rlt_core.grading.choice import choice_letter
from rlt_core.grading.compare import same
from rlt_core.grading.markers import (
    LIMITED,
    MAX_ANSWER_CHARS,
    is_bare,
    last_number,
    marked_answer,
    mathematics,
    read_answer,
)

Outcome = Literal["correct", "wrong", "unparsable", "ungradable", "grader_failed"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""`unparsable`: no answer could be read from the solution. `ungradable`: there is nothing to
compare with. `grader_failed`: the grader hung, died or raised on the answer. All but `ungradable`
and `correct` count as wrong: an answer that hangs the grader must not raise a score."""
UNGRADED: tuple[Outcome, ...] = ("ungradable",)
"""Outcomes that say nothing about the model: counted, but left out of every score."""

GRADERS = ("math", "arithmetic", "countdown", "multiple_choice", "none")


@dataclass(frozen=True)
class GradeItem:
    """A solution to grade."""

    solution: str | None
    """The model's solution; None if it gave none."""
    answer: str | None
    """The right answer; None makes the item ungradable (countdown needs none)."""
    grader: str
    """One of `GRADERS`, or `module:function@digest` of the user's own."""
    metadata: str | None = None
    """JSON with what the grader needs beside the answer (countdown's numbers and target), or
    `accepted`, a list of right answers."""

    def __post_init__(self) -> None:
        if self.grader not in GRADERS and not is_path(self.grader):
            raise ValueError(f"grader {self.grader!r} is not one of {', '.join(GRADERS)}")


@dataclass(frozen=True)
class Grade:
    """The verdict on one solution."""

    outcome: Outcome
    extracted: str | None = None
    """The answer read from the solution, cut to `MAX_ANSWER_CHARS`."""


def grade(item: GradeItem) -> Grade:
    """Return the verdict on one item. May hang or raise inside math-verify: see `Grader`."""
    metadata = _parsed(item.metadata)
    if accepted := metadata.get("accepted"):
        grades = [grade(replace(item, answer=answer, metadata=None)) for answer in accepted]
        return min(grades, key=lambda grade: OUTCOMES.index(grade.outcome))
    solution, answer = item.solution or "", item.answer
    gold: Any = None
    given: Any = None
    right: Callable[[Any, Any], bool] = operator.eq
    if item.grader == "countdown":
        gold, given = countdown.parse_task(metadata), countdown.read_expression(solution)
        right = countdown.solves
    elif item.grader == "none" or answer is None:
        return Grade("ungradable")
    elif is_path(item.grader):
        verdict = None if item.solution is None else load(item.grader)(solution, answer)
        gold, given = answer, None if verdict is None else solution
        right = lambda *_: bool(verdict)  # noqa: E731
    elif item.grader == "multiple_choice":
        gold, given = (choice_letter(text, metadata) for text in (answer, solution))
    elif item.grader == "arithmetic":
        marked, parsed = marked_answer(solution), _parse_gold(answer)
        given = last_number(solution if marked is None else marked)
        gold = parsed.parts[0] if parsed and parsed.kind == "scalar" else None
        gold = gold if isinstance(gold, Fraction) else None
    elif gold := _parse_gold(answer):
        given, right = _parse_given(solution, gold), same
    if gold is None or given is None:
        return Grade("ungradable" if gold is None else "unparsable")
    extracted = given.text if isinstance(given, Answer) else str(given)
    return Grade("correct" if right(gold, given) else "wrong", extracted[:MAX_ANSWER_CHARS])


def _parsed(metadata: str | None) -> dict[str, Any]:
    """Return the metadata; empty where it is no JSON object."""
    try:
        found = json.loads(metadata or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _parse_gold(answer: str) -> Answer | None:
    """Parse a right answer, which may itself be marked with `####` or a box."""
    return parse(marked_answer(answer) or answer)


def _parse_given(solution: str, gold: Answer) -> Answer | None:
    """Parse a solution's answer. If it is prose that affirms, and the right one is not prose, its
    only formula or number counts."""
    read = read_answer(solution)
    given = parse(read) if read else None
    prose = given is not None and given.kind == "words" and gold.kind != "words"
    if read and prose and not LIMITED.search(read):
        found = mathematics(read)
        return (parse(found[0]) if len(found) == 1 else None) or given
    return given


def has_answer(question: Mapping[str, Any]) -> bool:
    """Return whether a question (a row with grader and answer) can be graded; countdown needs no
    answer."""
    if question["grader"] == "countdown":
        return True
    return question["grader"] != "none" and question["answer"] is not None


def grades_itself(item: GradeItem) -> bool:
    r"""Return whether an item's right answer is graded correct, as \boxed{…} and as `Answer: …`.

    The item's solution is not read; for countdown, numbers and target must be there.
    """
    if item.grader == "countdown":
        return grade(replace(item, solution="")).outcome != "ungradable"
    if is_path(item.grader):
        return grade(replace(item, solution=item.answer)).outcome == "correct"
    answer = marked_answer(item.answer or "") or item.answer
    return all(
        grade(replace(item, solution=solution)).outcome == "correct"
        for solution in (rf"So we get \boxed{{{answer}}}.", f"So we are done.\nAnswer: {answer}")
    )


def answer_of(solution: str) -> str | None:
    r"""Return the final answer in a data set's solution, for data without an answer column.

    It is what the solution marks, else the whole text if it is mathematics without words, else
    None: such a question is ungradable.
    """
    marked = marked_answer(solution)
    if marked is not None:
        return marked or None
    text = solution.strip()
    return text if text and len(text) <= MAX_ANSWER_CHARS and is_bare(text) else None
