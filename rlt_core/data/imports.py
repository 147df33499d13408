"""Import from a user's file: traces, scores, and explanations to be scored."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rlt_core.data.layouts import scalar
from rlt_core.data.rawrow import (
    RawRow,
    dropped_row,
    question_id,
    question_row,
    require_text,
    require_written,
)
from rlt_core.data.row_files import (
    BadRow,
    NumberText,
    Record,
    kind_of,
    read_all,
    value_of,
)
from rlt_core.data.sources import CHECKED_ROWS, PROGRESS_ROWS, read_source, require_few, trace_file
from rlt_core.errors import UserError
from rlt_core.grading import answer_of
from rlt_core.progress import Progress
from rlt_core.prompts.format import PromptFormat
from rlt_core.prompts.renderer import Renderer
from rlt_core.reward.formula import rank_rewards
from rlt_core.rows import write_tables
from rlt_core.sql.schemas import SCORES

Row = dict[str, Any]


# ---------------------------------------------------------------- traces


def import_traces(
    path: Path, name: str, renderer: Renderer, out: Path, max_dropped: float, progress: Progress
) -> dict[str, float]:
    """Convert a trace file to the tables `traces`, `questions` (all in the split `train`) and
    `dropped` (unusable rows, and rows whose question has another solution in an earlier row).

    `name` is the teacher of the traces, which are closed and have the ids of the renderer's
    tokenizer. Raises UserError naming file, row, field and fix if more rows are dropped than
    `max_dropped` allows.
    """
    data = trace_file(str(path), max_dropped)
    source = read_source(data, 0, renderer.format, progress.part(0, 2), traces=True)
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
    questions = {key: _question(row, name, renderer) for key, row in first.items()}

    def traces() -> Iterator[Row]:
        samples: Counter[str] = Counter()
        for row in progress.part(1, 2).over(kept, len(kept), PROGRESS_ROWS):
            key = question_id(row.question)
            yield _trace(questions[key], row.trace or "", samples[key], name, renderer)
            samples[key] += 1

    dropped.sort(key=lambda row: row["row"])
    return write_tables(out, questions=questions.values(), traces=traces(), dropped=dropped)


def own_traces(
    questions: Iterable[Row], name: str, renderer: Renderer, out: Path
) -> dict[str, float]:
    """Write the training questions that have a trace to the table `questions`, and the traces to
    `traces`; `dropped` is empty. Raises UserError if no question has a trace."""
    kept = [row for row in questions if row["split"] == "train" and row["trace"]]
    if not kept:
        raise UserError(
            f"{name}: no training question has a trace of its own; map data.fields.trace, or take "
            "a data set with traces"
        )
    traces = (_trace(question, question["trace"], 0, name, renderer) for question in kept)
    return write_tables(out, questions=kept, traces=traces, dropped=[])


def _question(row: RawRow, name: str, renderer: Renderer) -> Row:
    answer = row.answer or answer_of(row.solution)
    tokens = len(renderer.teacher_prompt(row.question, row.solution))
    return question_row(
        replace(row, answer=answer, system=None, prompt_tokens=tokens), "train", name
    )


def _trace(question: Row, text: str, sample: int, name: str, renderer: Renderer) -> Row:
    return {
        "trace_id": f"{question['question_id']}-{sample}",
        "question_id": question["question_id"],
        "seed": 0,
        "teacher": name,
        "sample": sample,
        **text_columns(question, text, renderer),
    }


def text_columns(question: Row, text: str, renderer: Renderer) -> Row:
    """Return the columns of `traces` that hold a text, as if a teacher had completed it."""
    target = renderer.teacher_sft_row(question["question"], question["solution"], text)
    prompt_tokens = len(renderer.teacher_prompt(question["question"], question["solution"]))
    completion_ids = target.input_ids[prompt_tokens:]
    return {
        "text": text,
        "token_ids": renderer.encode_block(text),
        "completion_ids": completion_ids,
        "closed": True,
        "finish_reason": "stop",
        "prompt_tokens": prompt_tokens,
        "completion_tokens": len(completion_ids),
    }


# ---------------------------------------------------------------- scores
def import_scores(path: Path, name: str, out: Path) -> dict[str, float]:
    """Convert a score file to the table `scores`, ranked within each question.

    `name` is both teacher and student; columns missing in the file are empty. Raises UserError
    naming file, row, field and fix.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    seen: dict[tuple[str, int], int] = {}
    for number, row in read_all(path, partial(_score, name=name)):
        first = seen.setdefault((row["question_id"], row["sample"]), number)
        if first != number:
            raise UserError(f"{path}: rows {first} and {number} score the same completion")
        groups[row["question_id"]].append(row)
    for group in groups.values():
        for row, rank in zip(group, rank_rewards([row["reward"] for row in group]), strict=True):
            row["rank"] = rank
    rows = [row for group in groups.values() for row in group]
    write_tables(out, scores=rows)
    return {"scored": len(rows), "mean_reward": sum(row["reward"] for row in rows) / len(rows)}


def check_scores(path: Path, name: str) -> None:
    """Raise UserError for a bad row among the first ones."""
    for _ in islice(read_all(path, partial(_score, name=name)), CHECKED_ROWS):
        pass


def _score(number: int, record: Record, name: str) -> tuple[int, Row]:
    missing = [field for field in ("question_id", "reward") if field not in record]
    if missing:
        has = ", ".join(map(str, record))
        raise BadRow("missing", f"no field {missing[0]!r}; it has {has}")
    question_id, reward = value_of(record, "question_id"), record["reward"]
    sample = value_of(record, "sample") if "sample" in record else 0
    if question_id is None:
        raise BadRow("empty", "question_id is empty; fill it in or remove the row")
    try:
        reward, whole, sample = float(reward), int(sample), float(sample)
    except (TypeError, ValueError):
        raise BadRow("unreadable", "reward must be a number and sample an integer") from None
    if not math.isfinite(reward):
        raise BadRow("empty", f"reward is {reward}; leave out what could not be scored")
    if whole != sample:
        raise BadRow("unreadable", f"sample must be an integer, found {sample}")
    question_id = require_text(str(question_id), "question_id")
    return number, {
        **dict.fromkeys(SCORES.names),
        "trace_id": f"{question_id}-{whole}",
        "question_id": question_id,
        "seed": 0,
        "teacher": name,
        "student": name,
        "sample": whole,
        "status": "scored",
        "reward": reward,
    }


# ---------------------------------------------------------------- explanations
EXPLANATION_FIELDS = ("question", "solution", "explanation", "closed")


@dataclass(frozen=True)
class ExplanationRow:
    question_id: str
    sample: int
    """Index among the explanations of its question, in the file's order."""
    question: str
    solution: str
    text: str
    """The explanation; it may be empty."""
    closed: bool
    """Whether the explanation was closed with a tag."""


def read_explanations(
    source: Path | Iterable[Record],
    format: PromptFormat,
    columns: Mapping[str, str] | None = None,
) -> list[ExplanationRow]:
    """Return every row of a file, or of rows in memory, in order. `closed` is true by default.

    `columns`: the source's names of `EXPLANATION_FIELDS` where they differ; `a.b` is b of a.

    Raises UserError naming file, row, field and fix for the first bad row: row i of the scores must
    be row i of the file.
    """
    names = {field: field for field in EXPLANATION_FIELDS} | dict(columns or {})
    samples: Counter[str] = Counter()
    found = []
    for row in read_all(source, partial(_explanation, format=format, names=names)):
        found.append(replace(row, sample=samples[row.question_id]))
        samples[row.question_id] += 1
    return found


def _explanation(
    number: int, record: Record, format: PromptFormat, names: Mapping[str, str]
) -> ExplanationRow:
    question, solution, text = (_text(record, *each) for each in list(names.items())[:3])
    require_written(RawRow(number, question, solution), format)
    for tag in (format.explanation_open, format.explanation_close):
        # It may contain any other tag.
        if tag in text:
            raise BadRow(
                "tags",
                f"the explanation contains {tag}; give only the text between the tags, and set "
                "`closed` to whether the closing one was written",
            )
    # Rewards are ranked among explanations of the same question with the same solution.
    key = question_id(f"{question}\n{solution}")
    return ExplanationRow(key, 0, question, solution, text, _closed(record, names["closed"]))


def _text(record: Record, field: str, name: str) -> str:
    try:
        value = value_of(record, name)
    except KeyError:
        raise BadRow(
            "missing",
            f"no field {name!r}; it has {', '.join(map(str, record))}: name the column with "
            f"--field {field}=COLUMN, in Python with columns={{{field!r}: COLUMN}}",
        ) from None
    if field == "explanation" and value is None:
        value = record.get(name)  # it may be empty, or the text "none"
    elif value is None:
        raise BadRow("empty", f"empty {name}; it has no reward: leave the row out")
    if field == "solution":
        [value] = scalar(value, field, name)
    elif not isinstance(value, str) or isinstance(value, NumberText):
        raise BadRow("unreadable", f"{name} must be text, found {kind_of(value)}")
    return require_text(value, name)


def _closed(record: Record, name: str) -> bool:
    value = value_of(record, name) if name in record else None
    closed = {"true": True, "false": False, "none": True}.get(str(value).lower())
    if closed is None:
        raise BadRow("unreadable", f"{name} must be true or false, found {value!r}")
    return closed
