"""Answers in, verdicts out: correct, wrong, unparsable, ungradable or grader_failed.

A verifier can hang or die on what a model wrote, so grading runs in a process that can be killed
(`Grader`). Nothing here raises for what a model wrote. An answer on which the grader hangs or fails
counts as wrong, and is counted beside the score.
"""

from rlt_core.grading.grader import Grader
from rlt_core.grading.grade import answer_of, extract_answer
from rlt_core.grading.types import GRADERS, OUTCOMES, UNGRADED, Grade, GradeItem, Outcome

__all__ = [
    "GRADERS",
    "OUTCOMES",
    "UNGRADED",
    "Grade",
    "GradeItem",
    "Grader",
    "Outcome",
    "answer_of",
    "extract_answer",
]
