"""One row of a source, checked at the door."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass

from rlt_core.errors import UserError
from rlt_core.formats import PromptFormat


@dataclass(frozen=True)
class RawRow:
    """A question and what its source says about it."""

    row: int
    """1-based row of the source (of a JSONL file: its line)."""
    question: str
    solution: str
    trace: str | None = None
    answer: str | None = None
    grader: str | None = None
    """Set by generators; empty: mathematics if there is an answer."""
    metadata: str | None = None
    """JSON that the grader needs."""
    licence: str | None = None
    system: str | None = None
    """System prompt that the data set gives its student."""


def normalised(question: str) -> str:
    """What makes two questions the same: NFKC, case-folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", question).casefold().split())


def question_id(question: str) -> str:
    """First 16 hex digits of sha256 of the normalised question."""
    return hashlib.sha256(normalised(question).encode()).hexdigest()[:16]


def refuse_tags(rows: list[RawRow], format: PromptFormat, source: str) -> None:
    """Raise UserError for the first row whose text contains one of the format's tags."""
    for row in rows:
        for field in ("question", "solution", "trace"):
            text = getattr(row, field) or ""
            tag = next((tag for tag in format.tags if tag in text), None)
            if tag:
                raise UserError(
                    f"{source}, row {row.row}: the {field} contains {tag}, a tag of the prompt "
                    f"format {format.name}; remove the tag or choose another prompt_format"
                )
