"""Explanations that anyone wrote, to be scored: question, solution and explanation in a file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rlt_core.data.rawrow import RawRow, question_id, require_text, require_written
from rlt_core.data.row_files import BadRow, Number, Record, read_all, value_of
from rlt_core.prompts.format import PromptFormat

REQUIRED = ("question", "solution", "explanation")


@dataclass(frozen=True)
class Explanation:
    """One row of the file."""

    question_id: str
    sample: int
    """Number among the explanations of its question, in order of the file."""
    question: str
    solution: str
    text: str
    """Empty if the teacher wrote none."""
    closed: bool
    """Whether the teacher wrote the closing tag."""


def read_explanations(path: Path, format: PromptFormat) -> list[Explanation]:
    """Every row, in order. `closed` is true where the file does not say.

    Raises UserError naming file, row, field and fix: none is left out, as row i of the scores is
    row i of the file.
    """
    samples: Counter[str] = Counter()
    found = []
    for row in read_all(path, partial(_explanation, format=format)):
        found.append(replace(row, sample=samples[row.question_id]))
        samples[row.question_id] += 1
    return found


def _explanation(number: int, record: Record, format: PromptFormat) -> Explanation:
    question, solution, text = (_text(record, name) for name in REQUIRED)
    require_written(RawRow(number, question, solution), format)
    for tag in (format.explanation_open, format.explanation_close):
        # It may contain any tag but those around it.
        if tag in text:
            raise BadRow(
                "tags",
                f"the explanation contains {tag}; give the text between the tags alone, and say in "
                "`closed` whether the closing one was written",
            )
    # Rewards are ranked among explanations of one question with one solution.
    key = question_id(f"{question}\n{solution}")
    return Explanation(key, 0, question, solution, text, _closed(record))


def _text(record: Record, name: str) -> str:
    if name not in record:
        raise BadRow("missing", f"no field {name!r}; it has {', '.join(map(str, record))}")
    value = record[name] if name == "explanation" else value_of(record, name)
    if value is None and name != "explanation":
        raise BadRow("empty", f"empty {name}; it has no reward: leave the row out")
    if not isinstance(value, str) or isinstance(value, Number):
        kind = "a number" if isinstance(value, Number) else type(value).__name__
        raise BadRow("unreadable", f"{name} must be text, found {kind}")
    return require_text(value, name)


def _closed(record: Record) -> bool:
    value = value_of(record, "closed") if "closed" in record else None
    if value is None:
        return True
    words = {"true": True, "false": False}
    known = words.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(known, bool):
        raise BadRow("unreadable", f"closed must be true or false, found {value!r}")
    return known
