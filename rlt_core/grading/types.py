"""What is graded, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from rlt_core.extensions import is_path

Outcome = Literal["correct", "wrong", "unparsable", "ungradable", "grader_failed"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""`unparsable`: no answer could be read from the solution. `ungradable`: there is nothing to
compare with. `grader_failed`: the grader hung, died or raised on the answer. All but `ungradable`
and `correct` count as wrong: an answer that hangs the grader must not raise a score."""
UNGRADED: tuple[Outcome, ...] = ("ungradable",)
"""Outcomes that say nothing about the model: left out of every score, and counted."""

GRADERS = ("math", "arithmetic", "countdown", "multiple_choice", "none")


@dataclass(frozen=True)
class GradeItem:
    """One solution to grade."""

    solution: str | None
    """What the model gave as its solution; None when it gave none."""
    answer: str | None
    """What it is compared with; None makes it ungradable (countdown needs none)."""
    grader: str
    """One of `GRADERS`, or `module:function@digest` of the user's own."""
    metadata: str | None = None
    """JSON: what the grader needs beside the answer (countdown's numbers and target), or
    `accepted`, a list of answers of which any is right."""

    def __post_init__(self) -> None:
        if self.grader not in GRADERS and not is_path(self.grader):
            raise ValueError(f"grader {self.grader!r} is not one of {', '.join(GRADERS)}")


@dataclass(frozen=True)
class Grade:
    """The verdict on one solution."""

    outcome: Outcome
    extracted: str | None = None
    """The answer that was read from the solution, cut to `text.MAX_ANSWER_CHARS`."""
