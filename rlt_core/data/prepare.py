"""A source → the tables `questions` and `dropped`: merged, measured, split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rlt_core.config import DataConfig
from rlt_core.control import Control
from rlt_core.data.rawrow import RawRow, normalised, refuse_tags
from rlt_core.data.sources import read_source
from rlt_core.errors import UserError
from rlt_core.prompts import Prompter
from rlt_core.rows import write_rows

Row = dict[str, Any]
PROGRESS_ROWS = 500


def question_id(question: str) -> str:
    """First 16 hex digits of sha256 of the normalised question."""
    return hashlib.sha256(normalised(question).encode()).hexdigest()[:16]


def prepare_questions(
    data: DataConfig, prompter: Prompter, out: Path, control: Control
) -> dict[str, float]:
    """Write `out/questions.parquet` and `out/dropped.parquet`; returns counts.

    Rows with the same question are merged into the first of them, questions with too long a
    teacher prompt are dropped; both are listed in `dropped`. Splits are disjoint and chosen by the
    seed. Raises UserError for bad rows, or when too few questions are left.
    """
    raw = read_source(data)
    refuse_tags(raw, prompter.format, data.source)
    unique, dropped = _merge(raw)
    kept: list[Row] = []
    for done, row in enumerate(unique):
        question = _question(row, data, prompter)
        if question["prompt_tokens"] <= data.max_prompt_tokens:
            kept.append(question)
        else:
            detail = f"{question['prompt_tokens']} tokens, data.max_prompt_tokens is "
            dropped.append(_dropped(row, "prompt_too_long", f"{detail}{data.max_prompt_tokens}"))
        if done % PROGRESS_ROWS == 0:
            control.check()
            control.progress(done, len(unique), {})
    questions = list(_split(kept, data, len(raw), len(dropped)))
    write_rows(out / "questions.parquet", "questions", questions)
    write_rows(out / "dropped.parquet", "dropped", sorted(dropped, key=lambda row: row["row"]))
    return _metrics(raw, questions, dropped)


def _merge(raw: list[RawRow]) -> tuple[list[RawRow], list[Row]]:
    """First rows of each question, and the others as dropped."""
    first: dict[str, RawRow] = {}
    dropped = []
    for row in raw:
        kept = first.setdefault(question_id(row.question), row)
        if kept is not row:
            same = "same" if kept.solution == row.solution else "another"
            detail = f"the question of row {kept.row}, {same} solution"
            dropped.append(_dropped(row, "duplicate", detail))
    return list(first.values()), dropped


def _dropped(row: RawRow, reason: str, detail: str) -> Row:
    return {
        "row": row.row,
        "question_id": question_id(row.question),
        "reason": reason,
        "detail": detail,
    }


def _question(row: RawRow, data: DataConfig, prompter: Prompter) -> Row:
    from rlt_core.grading import answer_of

    answer = row.answer
    if answer is None and row.grader is None:
        answer = answer_of(row.solution)
    return {
        "question_id": question_id(row.question),
        "split": "",
        "question": row.question,
        "solution": row.solution,
        "answer": answer,
        "trace": row.trace,
        "grader": row.grader or ("none" if answer is None else "math"),
        "metadata": row.metadata,
        "source": data.source if "/" not in data.source else Path(data.source).name,
        "prompt_tokens": len(prompter.teacher_prompt(row.question, row.solution)),
    }


def _split(kept: list[Row], data: DataConfig, rows: int, dropped: int) -> Iterator[Row]:
    """Questions with their split, in an order that the seed gives."""
    held_out = data.n_validation + data.n_test
    needed = held_out + (data.n_train or 1)
    if len(kept) < needed:
        raise UserError(
            f"{data.source}: {len(kept)} questions are left of {rows} rows ({dropped} dropped), "
            f"but n_train={data.n_train or 'all'}, n_validation={data.n_validation} and "
            f"n_test={data.n_test} need at least {needed}; lower them or bring more questions"
        )
    order = [int(i) for i in np.random.default_rng(data.seed).permutation(len(kept))]
    n_train = data.n_train or len(kept) - held_out
    yield from ({**kept[i], "split": "train"} for i in order[held_out : held_out + n_train])
    yield from ({**kept[i], "split": "validation"} for i in order[data.n_test : held_out])
    yield from ({**kept[i], "split": "test"} for i in order[: data.n_test])


def _metrics(raw: list[RawRow], questions: list[Row], dropped: list[Row]) -> dict[str, float]:
    splits = [question["split"] for question in questions]
    reasons = [row["reason"] for row in dropped]
    return {
        "rows": len(raw),
        "train": splits.count("train"),
        "validation": splits.count("validation"),
        "test": splits.count("test"),
        "duplicates": reasons.count("duplicate"),
        "prompt_too_long": reasons.count("prompt_too_long"),
        "ungradable": sum(question["grader"] == "none" for question in questions),
        "with_trace": sum(question["trace"] is not None for question in questions),
    }
