"""Traces that others wrote: in a file of the user, or those that came with the questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlt_core.data.rawrow import RawRow, dropped_row, question_id
from rlt_core.data.sources import PROGRESS_ROWS, read_trace_file, require_few
from rlt_core.errors import UserError
from rlt_core.progress import Progress
from rlt_core.prompts.renderer import Renderer
from rlt_core.rows import write_rows

Row = dict[str, Any]


def import_traces(
    path: Path, name: str, renderer: Renderer, out: Path, max_dropped: float, progress: Progress
) -> dict[str, float]:
    """Write a trace file as the tables `traces`, `questions` (all in the split `train`) and
    `dropped`: rows that cannot be used, or that give a question another solution than its first.

    The traces count as written by `name`, closed, with the ids of the renderer's tokenizer. Raises
    UserError naming file, row, field and fix if more rows are dropped than `max_dropped` allows.
    """
    source = read_trace_file(path, renderer.format, max_dropped, progress.part(0, 2))
    if source.found:
        print(f"{path}: {source.found}")
    first: dict[str, RawRow] = {}
    kept, dropped = [], source.dropped
    for row in source.rows:
        one = first.setdefault(question_id(row.question), row)
        if one.solution == row.solution:
            kept.append(row)
            continue
        detail = f"rows {one.row} and {row.row} give one question two solutions; keep one"
        dropped.append(dropped_row(row.row, "duplicate", detail, row.question))
    require_few(str(path), dropped, len(kept) + len(dropped), max_dropped)
    questions = {key: _question(row, key, name, renderer) for key, row in first.items()}
    write_rows(out / "questions.parquet", "questions", questions.values())
    write_rows(
        out / "traces.parquet",
        "traces",
        _traces(kept, questions, name, renderer, progress.part(1, 2)),
    )
    write_rows(out / "dropped.parquet", "dropped", sorted(dropped, key=lambda row: row["row"]))
    return {"questions": len(questions), "traces": len(kept), "dropped": len(dropped)}


def _traces(
    rows: Sequence[RawRow],
    questions: Mapping[str, Row],
    name: str,
    renderer: Renderer,
    progress: Progress,
) -> Iterator[Row]:
    samples: Counter[str] = Counter()
    for done, row in enumerate(rows):
        key = question_id(row.question)
        assert row.trace is not None  # a file of traces
        yield _trace(questions[key], row.trace, samples[key], name, renderer)
        samples[key] += 1
        if done % PROGRESS_ROWS == 0:
            progress.check()
            progress.report(done, len(rows), {})


def own_traces(
    questions: Iterable[Row], name: str, renderer: Renderer, out: Path
) -> dict[str, float]:
    """Write the training questions that have a trace, as they are, and their traces as the tables
    `questions` and `traces`; `dropped` is empty. Raises UserError if no question has one."""
    kept = [row for row in questions if row["split"] == "train" and row["trace"]]
    if not kept:
        raise UserError(
            f"{name}: no training question has a trace of its own; map data.fields.trace, or take "
            "a data set with traces"
        )
    traces = (_trace(question, question["trace"], 0, name, renderer) for question in kept)
    write_rows(out / "questions.parquet", "questions", kept)
    write_rows(out / "traces.parquet", "traces", traces)
    write_rows(out / "dropped.parquet", "dropped", [])
    return {"questions": len(kept), "traces": len(kept), "dropped": 0}


def _question(row: RawRow, key: str, name: str, renderer: Renderer) -> Row:
    from rlt_core.grading import answer_of

    answer = row.answer or answer_of(row.solution)
    return {
        "question_id": key,
        "split": "train",
        "question": row.question,
        "solution": row.solution,
        "answer": answer,
        "trace": row.trace,
        "grader": "none" if answer is None else "math",
        "metadata": row.metadata,
        "source": name,
        "system": None,
        "licence": row.licence,
        "prompt_tokens": len(renderer.teacher_prompt(row.question, row.solution)),
    }


def _trace(question: Row, text: str, sample: int, name: str, renderer: Renderer) -> Row:
    target = renderer.teacher_sft_row(question["question"], question["solution"], text)
    prompt_tokens = len(renderer.teacher_prompt(question["question"], question["solution"]))
    completion_ids = target.input_ids[prompt_tokens:]
    return {
        "trace_id": f"{question['question_id']}-{sample}",
        "question_id": question["question_id"],
        "seed": 0,
        "teacher": name,
        "sample": sample,
        "text": text,
        "token_ids": renderer.encode_block(text),
        "completion_ids": completion_ids,
        "closed": True,
        "finish_reason": "stop",
        "prompt_tokens": prompt_tokens,
        "completion_tokens": len(completion_ids),
    }
