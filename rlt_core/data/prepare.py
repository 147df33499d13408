"""A source → the tables `questions`, `dropped`, `eval_overlaps`: merged, measured, split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlt_core.config import DataConfig
from rlt_core.control import Control
from rlt_core.data.overlap import LONG, find_overlaps, near_duplicates, require_disjoint
from rlt_core.data.rawrow import RawRow, question_id, refuse_tags
from rlt_core.data.sources import read_source
from rlt_core.errors import UserError
from rlt_core.prompts import Prompter
from rlt_core.rows import write_rows

Row = dict[str, Any]
PROGRESS_ROWS = 500
PERCENTILES = (5, 50, 95, 100)


def prepare_questions(
    data: DataConfig,
    prompter: Prompter,
    out: Path,
    control: Control,
    evaluated: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    tested: Sequence[Mapping[str, Any]] = (),
) -> dict[str, float]:
    """Write the tables `questions`, `dropped`, `eval_overlaps`; returns counts and token lengths.

    Rows with the same question are merged into the first of them, and so are near-duplicates;
    questions with too long a teacher prompt are dropped. Splits are disjoint and chosen by the
    seed. Training questions that overlap with the held-out test, with `tested` (that of another
    data set) or a set in `evaluated` (questions by task) are listed in `eval_overlaps`, and dropped
    where `data.overlap` says so. All that is dropped is in `dropped`. Raises UserError for bad
    rows, or when too few questions are left; RuntimeError if a generated problem is in two splits.
    """
    raw = read_source(data, len(tested))
    refuse_tags(raw, prompter.format, data.source)
    unique, dropped = _merge(raw, data.near_duplicate)
    kept: list[Row] = []
    places: dict[str, RawRow] = {}
    for done, row in enumerate(unique):
        question = _question(row, data, prompter)
        if question["prompt_tokens"] <= data.max_prompt_tokens:
            kept.append(question)
            places[question["question_id"]] = row
        else:
            detail = f"{question['prompt_tokens']} tokens, data.max_prompt_tokens is "
            dropped.append(_dropped(row, "prompt_too_long", f"{detail}{data.max_prompt_tokens}"))
        if done % PROGRESS_ROWS == 0:
            control.check()
            control.progress(done, len(unique), {})
    train, validation, test = _split(kept, data, len(raw), len(dropped))
    sets = {"test": [*test, *tested], **(evaluated or {})}
    overlaps = list(find_overlaps(train, sets))
    if data.overlap == "drop":
        train = _drop(train, overlaps, places, dropped)
    train = _chosen(train, data, overlaps)
    chosen = {question["question_id"] for question in train}
    if data.overlap == "report":
        overlaps = [row for row in overlaps if row["question_id"] in chosen]
    questions = [*train, *validation, *test]
    problems = require_disjoint(questions, sets if data.overlap == "drop" else {})
    write_rows(out / "questions.parquet", "questions", questions)
    write_rows(out / "dropped.parquet", "dropped", sorted(dropped, key=lambda row: row["row"]))
    write_rows(out / "eval_overlaps.parquet", "eval_overlaps", overlaps)
    counts = _metrics(raw, questions, dropped, overlaps)
    return counts | {"problems": problems} | _lengths(questions, prompter)


def _merge(raw: list[RawRow], threshold: float | None) -> tuple[list[RawRow], list[Row]]:
    """First rows of each question, and the others as dropped."""
    first: dict[str, RawRow] = {}
    dropped = []
    for row in raw:
        kept = first.setdefault(question_id(row.question), row)
        if kept is not row:
            same = "same" if kept.solution == row.solution else "another"
            detail = f"the question of row {kept.row}, {same} solution"
            dropped.append(_dropped(row, "duplicate", detail))
    unique = list(first.values())
    if threshold is None:
        return unique, dropped
    near = near_duplicates(unique, threshold)
    for place, (kept, similarity) in near.items():
        detail = f"like row {kept.row}: Jaccard index {similarity:.2f}"
        dropped.append(_dropped(unique[place], "near_duplicate", detail))
    return [row for place, row in enumerate(unique) if place not in near], dropped


def _drop(
    train: list[Row], overlaps: list[Row], places: Mapping[str, RawRow], dropped: list[Row]
) -> list[Row]:
    """Training questions without overlap; the others are added to `dropped`."""
    first: dict[str, Row] = {}
    for overlap in overlaps:
        first.setdefault(overlap["question_id"], overlap)
    for key, overlap in first.items():
        words = f"{overlap['n']} words" if overlap["n"] else "the whole question"
        detail = f"{words} of {overlap['task']}, question {overlap['evaluation_id']}"
        dropped.append(_dropped(places[key], "overlap", detail))
    return [question for question in train if question["question_id"] not in first]


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
        "licence": row.licence,
        "prompt_tokens": len(prompter.teacher_prompt(row.question, row.solution)),
    }


def _split(
    kept: list[Row], data: DataConfig, rows: int, dropped: int
) -> tuple[list[Row], list[Row], list[Row]]:
    """What training chooses from, validation and test, in an order that the seed gives."""
    held_out = data.n_validation + data.n_test
    needed = held_out + (data.n_train or 1)
    if len(kept) < needed:
        raise UserError(
            f"{data.source}: {len(kept)} questions are left of {rows} rows ({dropped} dropped), "
            f"but n_train={data.n_train or 'all'}, n_validation={data.n_validation} and "
            f"n_test={data.n_test} need at least {needed}; lower them or bring more questions"
        )
    order = [kept[int(i)] for i in np.random.default_rng(data.seed).permutation(len(kept))]
    train = [{**question, "split": "train"} for question in order[held_out:]]
    validation = [{**question, "split": "validation"} for question in order[data.n_test : held_out]]
    test = [{**question, "split": "test"} for question in order[: data.n_test]]
    return train, validation, test


def _chosen(train: list[Row], data: DataConfig, overlaps: list[Row]) -> list[Row]:
    """The training questions to keep. Raises UserError if overlaps left too few."""
    if len(train) < (data.n_train or 1):
        tasks = ", ".join(sorted({overlap["task"] for overlap in overlaps}))
        raise UserError(
            f"{data.source}: {len(train)} training questions are left, n_train="
            f"{data.n_train or 'all'}: the others overlap with {tasks}; lower data.n_train, or "
            "keep them with data.overlap=report"
        )
    return train[: data.n_train]


def _metrics(
    raw: list[RawRow], questions: list[Row], dropped: list[Row], overlaps: list[Row]
) -> dict[str, float]:
    splits = [question["split"] for question in questions]
    reasons = [row["reason"] for row in dropped]
    return {
        "rows": len(raw),
        "train": splits.count("train"),
        "validation": splits.count("validation"),
        "test": splits.count("test"),
        "duplicates": reasons.count("duplicate"),
        "near_duplicates": reasons.count("near_duplicate"),
        "prompt_too_long": reasons.count("prompt_too_long"),
        "overlapping": len({row["question_id"] for row in overlaps}),
        "overlapping_13": len({row["question_id"] for row in overlaps if row["n"] == LONG}),
        "ungradable": sum(question["grader"] == "none" for question in questions),
        "with_trace": sum(question["trace"] is not None for question in questions),
    }


def _lengths(questions: list[Row], prompter: Prompter) -> dict[str, float]:
    """Percentiles of the lengths of what the questions have, in tokens."""
    profile = {}
    for field in ("question", "solution", "trace"):
        texts = [question[field] for question in questions if question[field] is not None]
        if texts:
            lengths = [len(prompter.encode(text)) for text in texts]
            for percent, value in zip(
                PERCENTILES, np.percentile(lengths, PERCENTILES), strict=True
            ):
                profile[f"{field}_tokens_p{percent}"] = float(value)
    return profile
