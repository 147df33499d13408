"""Prepare a data set: merge duplicates, measure, split, and find overlaps with evaluation sets."""

import logging
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, MutableSequence, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlt_core.config import DataConfig
from rlt_core.data.dedup import LONG, find_overlaps, near_duplicates, require_disjoint
from rlt_core.data.rawrow import RawRow, dropped_row, question_id, question_row
from rlt_core.data.sources import PROGRESS_ROWS, check_file, is_file, read_source
from rlt_core.errors import UserError
from rlt_core.grading import Grader, answer_of
from rlt_core.progress import Progress
from rlt_core.prompts.format import PromptFormat
from rlt_core.prompts.renderer import Renderer
from rlt_core.rows import write_tables

Row = dict[str, Any]
log = logging.getLogger(__name__)
CHECK_BATCH = 500
SHOWN_CHARS = 60
PERCENTILES = (5, 50, 95, 100)
REASONS = ("duplicate", "near_duplicate", "prompt_too_long", "overlap")
"""Reasons to drop a usable row."""


def prepare_questions(
    data: DataConfig,
    renderer: Renderer,
    out: Path,
    progress: Progress,
    evaluated: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    tested: Sequence[Mapping[str, Any]] = (),
) -> dict[str, float]:
    """Write the tables `questions`, `dropped`, `eval_overlaps`; return counts and token lengths.

    The first of several rows with the same or nearly the same question is kept. Unusable rows and
    questions whose teacher prompt is too long are dropped. The seed chooses disjoint splits.
    Training questions that overlap with the test split, with `tested` (that of another data set) or
    with a set in `evaluated` (questions by task) are listed in `eval_overlaps`, and dropped if
    `data.overlap` is `drop`. `dropped` also lists the questions whose right answer is not graded
    correct against itself: they are kept without a grader. Raises UserError for too many bad rows
    or too few remaining questions; RuntimeError if a generated problem is in two splits.
    """
    parts = [progress.part(part, 6) for part in range(6)]
    source = read_source(data, len(tested), renderer.format, parts[0])
    _require_one_system(source.rows, data)
    if source.found:
        print(f"{data.source}: {source.found}")
    dropped, rows = source.dropped, len(source.rows) + len(source.dropped)
    unique = _merge(source.rows, data.near_duplicate, dropped, parts[1])
    del source  # memory
    kept = _fitting(unique, data, renderer, dropped, parts[2])
    ungradable = _check_answers(kept, data.source, parts[3])
    given = _given_test(data, renderer, dropped, parts[2])
    tested_here = ("duplicate", "a question of data.test_source")
    kept = _without(kept, {question_id(row.question): tested_here for row in given or ()}, dropped)
    _require_enough(len(kept), data, rows)
    n_test, order = data.n_test if given is None else 0, _shuffled(kept, data.seed)
    held_out = n_test + data.n_validation
    train, validation, test = order[held_out:], order[n_test:held_out], given or order[:n_test]
    name = data.source if "/" not in data.source else Path(data.source).name
    of_test = (question_row(row, "test", name) for row in test)
    sets = {"test": [*of_test, *tested], **(evaluated or {})}
    train, overlaps = _chosen(train, data, sets, dropped, parts[4])
    splits = {"train": train, "validation": validation, "test": test}

    def questions() -> Iterator[Row]:
        return (question_row(row, split, name) for split, part in splits.items() for row in part)

    lengths = {field: array("l") for field in ("question", "solution", "trace")}
    written = parts[5].over(questions(), sum(map(len, splits.values())), PROGRESS_ROWS)
    problems = require_disjoint(questions(), sets if data.overlap == "drop" else {})
    listed = sorted([*dropped, *ungradable], key=lambda row: row["row"])
    write_tables(
        out, questions=_measured(written, lengths, renderer), dropped=listed, eval_overlaps=overlaps
    )
    return {
        "rows": rows,
        **{split: len(part) for split, part in splits.items()},
        **_counts(dropped, overlaps),
        "ungradable": sum(row["grader"] == "none" for row in questions()),
        "with_trace": len(lengths["trace"]),
        "problems": problems,
        **_percentiles(lengths),
    }


def check_data(data: DataConfig, format: PromptFormat) -> None:
    """Raise UserError, before anything runs, for local files whose rows cannot be used, have
    several system prompts or are too few for the splits; hub and generated data are not read."""
    if data.test_source and is_file(data.test_source):
        check_file(data.replaced(source=data.test_source, test_source=None), format)
    if is_file(data.source):
        source, whole = check_file(data, format)
        _require_one_system(source.rows, data)
        if whole:
            _require_enough(len(source.rows), data, len(source.rows) + len(source.dropped))


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


def _measured(
    questions: Iterable[Row], lengths: Mapping[str, MutableSequence[int]], renderer: Renderer
) -> Iterator[Row]:
    """Yield questions; add the tokens of their texts to `lengths`, by field."""
    for question in questions:
        for field, tokens in lengths.items():
            if question[field] is not None:
                tokens.append(len(renderer.encode(question[field])))
        yield question


def _percentiles(lengths: Mapping[str, Sequence[int]]) -> dict[str, float]:
    return {
        f"{field}_tokens_p{percent}": float(np.percentile(tokens, percent))
        for field, tokens in lengths.items()
        if tokens
        for percent in PERCENTILES
    }


def _require_one_system(rows: list[RawRow], data: DataConfig) -> None:
    """Raise UserError unless all rows have the same system prompt, if it is used."""
    if not data.fields.system:
        return
    prompts = {row.system or None for row in rows}
    if len(prompts) > 1 or None in prompts:
        raise UserError(
            f"{data.source}, data.fields.system={data.fields.system!r}: students have one system "
            f"prompt, and the rows have {len(prompts)} or none; keep the rows of one, or set "
            "data.fields.system=null for the prompt format's own"
        )


def _merge(
    rows: list[RawRow], threshold: float | None, dropped: list[Row], progress: Progress
) -> list[RawRow]:
    """Return the first row of each question and add the others to `dropped`."""
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
    near = {
        question_id(unique[place].question): (
            "near_duplicate", f"like row {kept.row}: Jaccard index {similarity:.2f}"
        )
        for place, (kept, similarity) in near_duplicates(unique, threshold, progress).items()
    }  # fmt: skip
    return _without(unique, near, dropped)


def _fitting(
    rows: list[RawRow], data: DataConfig, renderer: Renderer, dropped: list[Row], progress: Progress
) -> list[RawRow]:
    """Return rows whose prompt fits, with answer and prompt length; add the others to `dropped`.
    Empties `rows`, so that nothing is in memory twice."""
    kept: list[RawRow] = []
    rows.reverse()
    for _ in progress.over(range(len(rows)), len(rows), PROGRESS_ROWS):
        row = rows.pop()
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


def _check_answers(rows: list[RawRow], source: str, progress: Progress) -> list[dict[str, Any]]:
    """Set the grader `none` for rows whose right answer is not graded correct against itself, and
    return them as rows of the table `dropped`. They stay in `rows`: training on solutions or
    explanations needs no grader. Raises Stopped."""
    listed = []
    starts = range(0, len(rows), CHECK_BATCH)
    with Grader() as grader:
        for start in progress.over(starts, len(starts)):
            batch = [
                {"answer": row.answer, "grader": row.grader or "math", "metadata": row.metadata}
                for row in rows[start : start + CHECK_BATCH]
            ]
            for place in grader.self_check(batch):
                row = rows[start + place]
                rows[start + place] = replace(row, grader="none")
                detail = (
                    f"kept, but not graded: the answer {str(row.answer)[:SHOWN_CHARS]!r} is not "
                    "graded correct against itself; write it as one answer"
                )
                listed.append(dropped_row(row.row, "ungradable", detail, row.question))
    if listed:
        log.warning(
            "%s: %d right answers are not graded correct against themselves, so their questions "
            "are used but not graded (table dropped, reason ungradable); row %d: %s",
            source, len(listed), listed[0]["row"], listed[0]["detail"],
        )  # fmt: skip
    return listed


def _without(
    rows: list[RawRow], reasons: Mapping[str, tuple[str, str]], dropped: list[Row]
) -> list[RawRow]:
    """Return the rows whose question has no reason (word, detail) by its id to be dropped; add the
    others to `dropped`."""
    if not reasons:
        return rows
    reason_of = [reasons.get(question_id(row.question)) for row in rows]
    pairs = list(zip(rows, reason_of, strict=True))
    dropped += [dropped_row(row.row, *why, row.question) for row, why in pairs if why]
    return [row for row, why in pairs if not why]


def _given_test(
    data: DataConfig, renderer: Renderer, dropped: list[Row], progress: Progress
) -> list[RawRow] | None:
    """Return at most `n_test` questions of the test file, chosen by the seed, or None without one;
    add rows that cannot be used to `dropped`. Raises UserError if none is left."""
    if data.test_source is None:
        return None
    own = data.replaced(source=data.test_source, test_source=None)
    source = read_source(own, 0, renderer.format)
    left_out = source.dropped
    rows = _merge(source.rows, None, left_out, progress)
    rows = _fitting(rows, own, renderer, left_out, progress)
    left_out += _check_answers(rows, own.source, progress)
    dropped += [one | {"detail": f"of data.test_source: {one['detail']}"} for one in left_out]
    if not rows:
        raise UserError(f"data.test_source={data.test_source!r}: no usable question is left")
    return _shuffled(rows, data.seed)[: data.n_test]


def _shuffled(rows: list[RawRow], seed: int) -> list[RawRow]:
    return [rows[int(i)] for i in np.random.default_rng(seed).permutation(len(rows))]


def _require_enough(left: int, data: DataConfig, rows: int) -> None:
    """Raise UserError if fewer questions of the rows are left than the splits need."""
    n_test = data.n_test if data.test_source is None else 0
    needed = data.n_validation + n_test + (data.n_train or 1)
    if left < needed:
        raise UserError(
            f"{data.source}: {left} questions are left of {rows} rows ({rows - left} dropped), but "
            f"n_train={data.n_train or 'all'}, n_validation={data.n_validation} and "
            f"n_test={n_test} need at least {needed}; lower them or add questions"
        )


def _chosen(
    train: list[RawRow],
    data: DataConfig,
    sets: Mapping[str, Sequence[Mapping[str, Any]]],
    dropped: list[Row],
    progress: Progress,
) -> tuple[list[RawRow], list[Row]]:
    """Return the training questions to keep, and their overlaps with evaluation sets. Raises
    UserError if overlaps leave too few."""
    overlaps = list(find_overlaps(train, sets, progress))
    if data.overlap == "drop":
        reasons: dict[str, tuple[str, str]] = {}  # the first overlap of each question
        for one in overlaps:
            words = f"{one['n']} words" if one["n"] else "the whole question"
            detail = f"{words} of {one['task']}, question {one['evaluation_id']}"
            reasons.setdefault(one["question_id"], ("overlap", detail))
        train = _without(train, reasons, dropped)
    if len(train) < (data.n_train or 1):
        tasks = ", ".join(sorted({overlap["task"] for overlap in overlaps}))
        raise UserError(
            f"{data.source}: {len(train)} training questions are left, n_train="
            f"{data.n_train or 'all'}: the others overlap with {tasks}; lower data.n_train, or "
            "keep them with data.overlap=report"
        )
    train = train[: data.n_train]
    if data.overlap == "report":
        chosen = {question_id(row.question) for row in train} if overlaps else set()
        overlaps = [row for row in overlaps if row["question_id"] in chosen]
    return train, overlaps
