"""Traces that others wrote: in a file of the user, or those that came with the questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlt_core.config import FieldMapping
from rlt_core.data.rawrow import RawRow, question_id, refuse_tags
from rlt_core.data.sources import read_mapped
from rlt_core.errors import UserError
from rlt_core.formats import PromptFormat
from rlt_core.prompts import Prompter
from rlt_core.rows import write_rows

Row = dict[str, Any]
FIELDS = FieldMapping(trace="trace")


def read_trace_file(
    path: Path, format: PromptFormat, fields: FieldMapping = FIELDS
) -> list[RawRow]:
    """All traces of a file, several a question if it has them. Raises UserError naming file, row,
    field and the mend; also for a question that stands there with two solutions."""
    rows = read_mapped(path, fields)
    if not rows:
        raise UserError(f"{path}: there is no row in it")
    refuse_tags(rows, format, str(path))
    first: dict[str, RawRow] = {}
    for row in rows:
        kept = first.setdefault(question_id(row.question), row)
        if kept.solution != row.solution:
            raise UserError(
                f"{path}: rows {kept.row} and {row.row} give one question two solutions; keep one"
            )
    return rows


def import_traces(path: Path, name: str, prompter: Prompter, out: Path) -> dict[str, float]:
    """Write a trace file as the tables `traces` and `questions` (all in the split `train`).

    The traces count as written by `name`, closed, with the ids of the prompter's tokenizer.
    """
    rows = read_trace_file(path, prompter.format)
    questions: dict[str, Row] = {}
    traces = []
    samples: Counter[str] = Counter()
    for row in rows:
        key = question_id(row.question)
        questions.setdefault(key, _question(row, key, name, prompter))
        assert row.trace is not None  # FIELDS maps it
        traces.append(_trace(questions[key], row.trace, samples[key], name, prompter))
        samples[key] += 1
    write_rows(out / "questions.parquet", "questions", questions.values())
    write_rows(out / "traces.parquet", "traces", traces)
    return {"questions": len(questions), "traces": len(traces)}


def own_traces(
    questions: Iterable[Row], name: str, prompter: Prompter, out: Path
) -> dict[str, float]:
    """Write the training questions that have a trace, as they are, and their traces as the tables
    `questions` and `traces`. Raises UserError if no question has one."""
    kept = [row for row in questions if row["split"] == "train" and row["trace"]]
    if not kept:
        raise UserError(
            f"{name}: no training question has a trace of its own; map data.fields.trace, or take "
            "a data set with traces"
        )
    traces = [_trace(question, question["trace"], 0, name, prompter) for question in kept]
    write_rows(out / "questions.parquet", "questions", kept)
    write_rows(out / "traces.parquet", "traces", traces)
    return {"questions": len(kept), "traces": len(traces)}


def _question(row: RawRow, key: str, name: str, prompter: Prompter) -> Row:
    from rlt_core.grading import answer_of

    answer = answer_of(row.solution)
    return {
        "question_id": key,
        "split": "train",
        "question": row.question,
        "solution": row.solution,
        "answer": answer,
        "trace": row.trace,
        "grader": "none" if answer is None else "math",
        "metadata": None,
        "source": name,
        "licence": row.licence,
        "prompt_tokens": len(prompter.teacher_prompt(row.question, row.solution)),
    }


def _trace(question: Row, text: str, sample: int, name: str, prompter: Prompter) -> Row:
    target = prompter.teacher_sft_row(question["question"], question["solution"], text)
    prompt_tokens = len(prompter.teacher_prompt(question["question"], question["solution"]))
    completion_ids = target.input_ids[prompt_tokens:]
    return {
        "trace_id": f"{question['question_id']}-{sample}",
        "question_id": question["question_id"],
        "seed": 0,
        "teacher": name,
        "sample": sample,
        "text": text,
        "token_ids": prompter.encode(text),
        "completion_ids": completion_ids,
        "closed": True,
        "finish_reason": "stop",
        "prompt_tokens": prompt_tokens,
        "completion_tokens": len(completion_ids),
    }
