"""Explanations that anyone wrote, to be scored: question, solution and explanation in a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlt_core.data.files import read_records
from rlt_core.data.rawrow import RawRow, question_id, refuse_tags
from rlt_core.errors import UserError
from rlt_core.formats import PromptFormat

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

    Raises UserError naming file, row, field and the mend.
    """
    rows: list[RawRow] = []
    closed: list[bool] = []
    for number, record in read_records(path):
        texts = {name: _text(record, name, f"{path}, row {number}") for name in REQUIRED}
        rows.append(RawRow(number, texts["question"], texts["solution"], texts["explanation"]))
        _refuse_own_tags(texts["explanation"], format, f"{path}, row {number}")
        closed.append(_closed(record.get("closed"), f"{path}, row {number}"))
    if not rows:
        raise UserError(f"{path}: there is no row in it")
    refuse_tags([replace(row, trace=None) for row in rows], format, str(path))
    return _numbered(rows, closed)


def _refuse_own_tags(text: str, format: PromptFormat, place: str) -> None:
    """An explanation may speak of any tag but those that it stands between."""
    for tag in (format.explanation_open, format.explanation_close):
        if tag in text:
            raise UserError(
                f"{place}: the explanation contains {tag}; give the text between the tags alone, "
                "and say in `closed` whether the closing one was written"
            )


def _numbered(rows: Sequence[RawRow], closed: Sequence[bool]) -> list[Explanation]:
    samples: Counter[str] = Counter()
    found = []
    for row, is_closed in zip(rows, closed, strict=True):
        # Rewards are ranked among explanations of one question with one solution.
        key = question_id(f"{row.question}\n{row.solution}")
        text = row.trace or ""
        found.append(Explanation(key, samples[key], row.question, row.solution, text, is_closed))
        samples[key] += 1
    return found


def _text(record: dict[str, Any], name: str, place: str) -> str:
    if name not in record:
        raise UserError(f"{place}: no field {name!r}; it has {', '.join(record)}")
    value = record[name]
    if not isinstance(value, str):
        raise UserError(f"{place}: {name} must be text, found {type(value).__name__}")
    if not value and name != "explanation":
        raise UserError(f"{place}: empty {name}; it has no reward: leave the row out")
    return value


def _closed(value: Any, place: str) -> bool:
    if value is None:
        return True
    words = {"true": True, "false": False}
    known = words.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(known, bool):
        raise UserError(f"{place}: closed must be true or false, found {value!r}")
    return known
