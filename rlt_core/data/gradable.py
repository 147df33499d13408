"""Right answers that no grader can use: found before a model is graded with them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from rlt_core.data.rawrow import RawRow, dropped_row
from rlt_core.grading import Grader
from rlt_core.progress import Progress

log = logging.getLogger(__name__)
_BATCH = 500
_SHOWN = 60


def check_answers(rows: list[RawRow], source: str, progress: Progress) -> list[dict[str, Any]]:
    """Give rows whose right answer is not graded correct against itself the grader `none`, in
    place, and return them as rows of the table `dropped` with the reason `ungradable`. They stay:
    training on solutions or explanations needs no grader. Raises Stopped."""
    listed = []
    with Grader() as grader:
        for start in range(0, len(rows), _BATCH):
            progress.check()
            progress.report(start, len(rows), {})
            batch = [
                {"answer": row.answer, "grader": row.grader or "math", "metadata": row.metadata}
                for row in rows[start : start + _BATCH]
            ]
            for place in grader.self_check(batch):
                row = rows[start + place]
                rows[start + place] = replace(row, grader="none")
                detail = (
                    f"kept, but not graded: the answer {str(row.answer)[:_SHOWN]!r} is not graded "
                    "correct against itself; write it as one answer"
                )
                listed.append(dropped_row(row.row, "ungradable", detail, row.question))
    if listed:
        log.warning(
            "%s: %d right answers are not graded correct against themselves, so their questions "
            "are used but not graded (table dropped, reason ungradable); row %d: %s",
            source, len(listed), listed[0]["row"], listed[0]["detail"],
        )  # fmt: skip
    return listed
