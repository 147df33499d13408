"""Countdown by reasoning-gym: reach a target with given numbers. Out of domain for arithmetic."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

from rlt_core.data.rawrow import RawRow

MIN_NUMBERS, MAX_NUMBERS = 3, 4
SEED_STRIDE = 10_000_019
"""The generator numbers problem i of seed s as s + i: seeds must lie further apart than that."""

EVALUATION_QUESTIONS, EVALUATION_SEED = 100, 1_000_003
"""The evaluation set `countdown`: its seed is unlike any training seed."""


def countdown_rows(n: int, seed: int) -> list[RawRow]:
    """`n` problems, different in numbers (in any order) or target, one solution each, no traces.

    reasoning-gym rounds targets down; a problem whose own solution misses its target is skipped.
    """
    from reasoning_gym.games.countdown import CountdownConfig, CountdownDataset

    from rlt_core.grading.countdown import Task, solves

    generator = CountdownDataset(
        CountdownConfig(
            min_numbers=MIN_NUMBERS, max_numbers=MAX_NUMBERS, seed=seed * SEED_STRIDE, size=1
        )
    )
    rows: dict[tuple[int, ...], RawRow] = {}
    for i in count():
        if len(rows) == n:
            break
        problem = generator[i]
        numbers, target = problem["metadata"]["numbers"], problem["metadata"]["target"]
        if not solves(problem["answer"], Task(tuple(numbers), target)):
            continue
        question = (
            f"Use each of {', '.join(map(str, numbers))} exactly once, with + - * / and brackets, "
            f"to make {target}. Answer with the expression."
        )
        metadata = json.dumps({"numbers": numbers, "target": target})
        rows.setdefault(
            (target, *sorted(numbers)),
            RawRow(
                len(rows) + 1,
                question,
                problem["answer"],
                answer=str(target),
                grader="countdown",
                metadata=metadata,
            ),
        )
    return list(rows.values())


def countdown_questions(n: int, seed: int) -> list[dict[str, Any]]:
    """`n` problems as questions to be tested on."""
    from rlt_core.data.prepare import question_id

    return [
        {
            "question_id": question_id(row.question),
            "question": row.question,
            "solution": row.solution,
            "answer": row.answer,
            "grader": row.grader,
            "metadata": row.metadata,
        }
        for row in countdown_rows(n, seed)
    ]
