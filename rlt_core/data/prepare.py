"""A source → the tables `questions`, `dropped`, `eval_overlaps`: merged, measured, split."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlt_core.config import DataConfig
from rlt_core.data.gradable import check_answers
from rlt_core.data.overlap import find_overlaps, require_disjoint
from rlt_core.data.rawrow import RawRow, dropped_row, question_id
from rlt_core.data.shingles import LONG, near_duplicates
from rlt_core.data.sources import PROGRESS_ROWS, read_source
from rlt_core.errors import UserError
from rlt_core.progress import Progress
from rlt_core.prompts.renderer import Renderer
from rlt_core.rows import write_rows

Row = dict[str, Any]
PERCENTILES = (5, 50, 95, 100)
REASONS = ("duplicate", "near_duplicate", "prompt_too_long", "overlap")
"""Why a row is dropped that could be used."""


def prepare_questions(
    data: DataConfig,
    renderer: Renderer,
    out: Path,
    progress: Progress,
    evaluated: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    tested: Sequence[Mapping[str, Any]] = (),
) -> dict[str, float]:
    """Write the tables `questions`, `dropped`, `eval_overlaps`; returns counts and token lengths.

    Rows that cannot be used are dropped. Rows with the same question are merged into the first of
    them, and so are near-duplicates; questions with too long a teacher prompt are dropped. Splits
    are disjoint and chosen by the seed. Training questions that overlap with the held-out test,
    with `tested` (that of another data set) or a set in `evaluated` (questions by task) are listed
    in `eval_overlaps`, and dropped where `data.overlap` says so. All that is dropped is in
    `dropped`, and so are questions whose right answer is not graded correct against itself: they
    are kept without a grader. Raises UserError for too many bad rows, or when too few questions are
    left; RuntimeError if a generated problem is in two splits.
    """
    parts = [progress.part(part, 6) for part in range(6)]
    source = read_source(data, len(tested), renderer.format, parts[0])
    _require_one_system(source.rows, data)
    if source.found:
        print(f"{data.source}: {source.found}")
    dropped, rows = source.dropped, len(source.rows) + len(source.dropped)
    unique = _merge(source.rows, data.near_duplicate, dropped, parts[1])
    del source
    kept = _fitting(unique, data, renderer, dropped, parts[2])
    del unique
    ungradable = check_answers(kept, data.source, parts[3])
    train, validation, test = _split(kept, data, rows, len(dropped))
    of_test = [_question(row, data, "test") for row in test]
    sets = {"test": [*of_test, *tested], **(evaluated or {})}
    overlaps = list(find_overlaps(train, sets, parts[4]))
    if data.overlap == "drop":
        train = _drop(train, overlaps, dropped)
    train = _chosen(train, data, overlaps)
    if data.overlap == "report":
        chosen = {question_id(row.question) for row in train} if overlaps else set()
        overlaps = [row for row in overlaps if row["question_id"] in chosen]
    splits = {"train": train, "validation": validation, "test": test}

    def questions() -> Iterator[Row]:
        return (_question(row, data, split) for split, part in splits.items() for row in part)

    problems = require_disjoint(questions(), sets if data.overlap == "drop" else {})
    measured = _Measured(renderer, parts[5], sum(map(len, splits.values())))
    write_rows(out / "questions.parquet", "questions", measured(questions()))
    listed = sorted([*dropped, *ungradable], key=lambda row: row["row"])
    write_rows(out / "dropped.parquet", "dropped", listed)
    write_rows(out / "eval_overlaps.parquet", "eval_overlaps", overlaps)
    return {
        "rows": rows,
        **{split: len(part) for split, part in splits.items()},
        **_counts(dropped, overlaps),
        "ungradable": measured.ungradable,
        "with_trace": len(measured.lengths["trace"]),
        "problems": problems,
        **measured.percentiles(),
    }


def _counts(dropped: list[Row], overlaps: list[Row]) -> dict[str, float]:
    reasons = Counter(row["reason"] for row in dropped)
    return {
        "bad_rows": sum(count for reason, count in reasons.items() if reason not in REASONS),
        "duplicates": reasons["duplicate"],
        "near_duplicates": reasons["near_duplicate"],
        "prompt_too_long": reasons["prompt_too_long"],
        "overlapping": len({row["question_id"] for row in overlaps}),
        "overlapping_13": len({row["question_id"] for row in overlaps if row["n"] == LONG}),
    }


def _require_one_system(rows: list[RawRow], data: DataConfig) -> None:
    """Raise UserError unless all rows have the same system prompt, where it is to be used."""
    if not data.fields.system:
        return
    first: dict[str | None, int] = {}
    for row in rows:
        first.setdefault(row.system or None, row.row)
    if len(first) > 1 or None in first:
        shown = ", ".join(str(row) for row in list(first.values())[:5])
        found = "none" if None in first else f"{len(first)}, first in rows {shown}"
        raise UserError(
            f"{data.source}, data.fields.system={data.fields.system!r}: students have one system "
            f"prompt and the data {found}; keep the rows of one, or set data.fields.system=null "
            "for the prompt format's own"
        )


def _merge(
    rows: list[RawRow], threshold: float | None, dropped: list[Row], progress: Progress
) -> list[RawRow]:
    """First rows of each question; the others are added to `dropped`."""
    ids = np.fromiter((int(question_id(row.question), 16) for row in rows), np.uint64, len(rows))
    _, first, group = np.unique(ids, return_index=True, return_inverse=True)
    for place in np.flatnonzero(first[group] != np.arange(len(rows))).tolist():
        row, kept = rows[place], rows[first[group[place]]]
        same = "same" if kept.solution == row.solution else "another"
        detail = f"the question of row {kept.row}, {same} solution"
        dropped.append(dropped_row(row.row, "duplicate", detail, row.question))
    unique = [rows[place] for place in np.sort(first).tolist()]
    if threshold is None:
        return unique
    near = near_duplicates(unique, threshold, progress)
    for place, (kept, similarity) in near.items():
        detail = f"like row {kept.row}: Jaccard index {similarity:.2f}"
        row = unique[place]
        dropped.append(dropped_row(row.row, "near_duplicate", detail, row.question))
    return [row for place, row in enumerate(unique) if place not in near]


def _fitting(
    rows: list[RawRow], data: DataConfig, renderer: Renderer, dropped: list[Row], progress: Progress
) -> list[RawRow]:
    """Rows whose prompt is not too long, with an answer and their prompt's tokens; the others are
    added to `dropped`. Empties `rows`, so that nothing is in memory twice."""
    from rlt_core.grading import answer_of

    kept: list[RawRow] = []
    total = len(rows)
    rows.reverse()
    for done in range(total):
        row = rows.pop()
        if done % PROGRESS_ROWS == 0:
            progress.check()
            progress.report(done, total, {})
        tokens = len(renderer.teacher_prompt(row.question, row.solution))
        if tokens > data.max_prompt_tokens:
            detail = f"{tokens} tokens, data.max_prompt_tokens is {data.max_prompt_tokens}"
            dropped.append(dropped_row(row.row, "prompt_too_long", detail, row.question))
            continue
        answer = row.answer
        if answer is None and row.grader is None:
            answer = answer_of(row.solution)
        grader = row.grader or (None if answer is None else data.grader)
        kept.append(replace(row, answer=answer, grader=grader, prompt_tokens=tokens))
    return kept


def _drop(train: list[RawRow], overlaps: list[Row], dropped: list[Row]) -> list[RawRow]:
    """Training questions without overlap; the others are added to `dropped`."""
    first: dict[str, Row] = {}
    for overlap in overlaps:
        first.setdefault(overlap["question_id"], overlap)
    if not first:
        return train
    kept = []
    for row in train:
        overlap = first.get(question_id(row.question), {})
        if not overlap:
            kept.append(row)
            continue
        words = f"{overlap['n']} words" if overlap["n"] else "the whole question"
        detail = f"{words} of {overlap['task']}, question {overlap['evaluation_id']}"
        dropped.append(dropped_row(row.row, "overlap", detail, row.question))
    return kept


def _question(row: RawRow, data: DataConfig, split: str) -> Row:
    return {
        "question_id": question_id(row.question),
        "split": split,
        "question": row.question,
        "solution": row.solution,
        "answer": row.answer,
        "trace": row.trace,
        "grader": row.grader or ("none" if row.answer is None else "math"),
        "metadata": row.metadata,
        "source": data.source if "/" not in data.source else Path(data.source).name,
        "system": row.system,
        "licence": row.licence,
        "prompt_tokens": row.prompt_tokens,
    }


def _split(
    kept: list[RawRow], data: DataConfig, rows: int, dropped: int
) -> tuple[list[RawRow], list[RawRow], list[RawRow]]:
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
    return order[held_out:], order[data.n_test : held_out], order[: data.n_test]


def _chosen(train: list[RawRow], data: DataConfig, overlaps: list[Row]) -> list[RawRow]:
    """The training questions to keep. Raises UserError if overlaps left too few."""
    if len(train) < (data.n_train or 1):
        tasks = ", ".join(sorted({overlap["task"] for overlap in overlaps}))
        raise UserError(
            f"{data.source}: {len(train)} training questions are left, n_train="
            f"{data.n_train or 'all'}: the others overlap with {tasks}; lower data.n_train, or "
            "keep them with data.overlap=report"
        )
    return train[: data.n_train]


class _Measured:
    """Counts questions and the tokens of their texts while they pass."""

    def __init__(self, renderer: Renderer, progress: Progress, total: int) -> None:
        self._renderer, self._progress, self._total = renderer, progress, total
        self.lengths = {field: array("l") for field in ("question", "solution", "trace")}
        self.ungradable = 0

    def __call__(self, questions: Iterable[Row]) -> Iterator[Row]:
        for done, question in enumerate(questions):
            if done % PROGRESS_ROWS == 0:
                self._progress.check()
                self._progress.report(done, self._total, {})
            self.ungradable += question["grader"] == "none"
            for field, lengths in self.lengths.items():
                if question[field] is not None:
                    lengths.append(len(self._renderer.encode(question[field])))
            yield question

    def percentiles(self) -> dict[str, float]:
        """Of the lengths of what the questions have, in tokens."""
        return {
            f"{field}_tokens_p{percent}": float(np.percentile(lengths, percent))
            for field, lengths in self.lengths.items()
            if lengths
            for percent in PERCENTILES
        }
