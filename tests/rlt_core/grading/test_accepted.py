"""Of several accepted answers any is right."""

from __future__ import annotations

import json

import pytest

from rlt_core.grading import GradeItem
from rlt_core.grading.grade import grade


@pytest.mark.parametrize(
    ("solution", "outcome"),
    [
        (r"\boxed{18}", "correct"),
        (r"\boxed{\frac12}", "correct"),
        (r"\boxed{7}", "wrong"),
        ("", "unparsable"),
    ],
)
def test_any_accepted_answer_is_right(solution: str, outcome: str) -> None:
    metadata = json.dumps({"accepted": ["18", "0.5"]})
    assert grade(GradeItem(solution, "18", "math", metadata)).outcome == outcome
