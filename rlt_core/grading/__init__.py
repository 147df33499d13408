"""Grade answers: correct, wrong, unparsable, ungradable or grader_failed.

A verifier can hang or die on what a model wrote, so `Grader` grades in processes that can be
killed. Nothing here raises because of a model's text. An answer on which the grader hangs or fails
counts as wrong, and is counted beside the score.
"""

from rlt_core.grading.grade import (
    GRADERS,
    OUTCOMES,
    UNGRADED,
    Grade,
    GradeItem,
    Outcome,
    answer_of,
    has_answer,
)
from rlt_core.grading.grader import Grader
