"""Does an explanation lead to its solution, or does it merely announce it?

One more pass of the student: the solution beside a wrong one, and after parts of the explanation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlt_core.progress import Progress
from rlt_core.prompts.renderer import Context, Renderer
from rlt_core.scoring.alignment import Contexts
from rlt_core.scoring.logprobs import selected_logprobs
from rlt_core.scoring.tokens import Loader

PARTS = (0.0, 0.25, 0.5, 0.75)
"""Parts of the explanation after which the solution is looked at, beside all of it."""
Row = dict[str, Any]


def wrong_solution(solution: str, others: Iterable[str]) -> str | None:
    """Return the solution with its last number raised by one, or where it has none, the first
    other solution that differs; None: there is no other."""
    # Of a number too long for `int`, its last digits.
    numbers = list(re.finditer(r"\d{1,18}(?!\d)", solution))
    if numbers:
        start, end = numbers[-1].span()
        return f"{solution[:start]}{int(solution[start:end]) + 1}{solution[end:]}"
    return next((other for other in others if other.strip() != solution.strip()), None)


def with_anchoring(
    rows: Sequence[Row],
    contexts: Sequence[Contexts],
    questions: Mapping[str, Mapping[str, Any]],
    renderer: Renderer,
    load_student: Loader,
    temperature: float,
    tokens_per_batch: int,
    progress: Progress | None = None,
) -> list[Row]:
    """Return rows of `scores` with `anchor_gap` and `solved_at`; None for what was not scored.

    `renderer`: the student's. anchor_gap: mean log p(S | q, t) - mean log p(S' | q, t) per token,
    S' a wrong solution. solved_at: the smallest of a quarter, half, three quarters and all of t
    after which mean log p(S | q, t[:k]) has made half of its way from no t to all of it; None if
    the explanation makes the solution no likelier.
    """
    asked: list[Context] = []
    others = [row["solution"] for _, row in sorted(questions.items())]
    wrongs: list[str | None] = []
    for row, each in zip(rows, contexts, strict=True):
        if row["status"] != "scored":
            continue
        question = questions[row["question_id"]]
        text, solution, ids = question["question"], question["solution"], list(each.think_ids)
        cuts = [ids[: int(part * len(ids))] for part in PARTS]
        asked += [renderer.student_context(text, cut, solution) for cut in cuts]
        wrongs.append(wrong := wrong_solution(solution, others))
        if wrong:
            asked.append(renderer.student_context(text, ids, wrong))
    with load_student() as student:
        found = selected_logprobs(
            student, [each.ids for each in asked], [[each.solution or (0, 0)] for each in asked],
            temperature, tokens_per_batch, progress,
        )  # fmt: skip
    means, given = (float(logprobs.mean()) for (logprobs,) in found), iter(wrongs)
    measured: list[Row] = []
    for row in rows:
        gap = at = None
        if row["status"] == "scored":
            whole = sum(row["student_solution_logprobs"]) / row["solution_tokens"]
            at = _solved_at([*(next(means) for _ in PARTS), float(whole)])
            gap = float(whole - next(means)) if next(given) else None
        measured.append(row | {"anchor_gap": gap, "solved_at": at})
    return measured


def _solved_at(means: Sequence[float]) -> float | None:
    """`means`: after each of PARTS, then after all."""
    gain = means[-1] - means[0]
    if gain <= 0:
        return None
    return next(
        part
        for part, mean in zip((*PARTS[1:], 1.0), means[1:], strict=True)
        if mean - means[0] >= gain / 2
    )
