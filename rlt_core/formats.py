"""Prompt formats are data: system prompts, tags and separators as JSON files."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from rlt_core.errors import UserError

FOLDER = Path(__file__).parent / "formats_data"


class PromptFormat(BaseModel):
    """The words around question, solution and explanation, for teacher and student.

    Teacher, assistant turn (prefilled up to and with `think_prefix`, T is generated):
    `solution_open S solution_close separator explanation_open think_prefix T explanation_close`.
    Student, assistant turn:
    `thought_open think_prefix T thought_close separator solution_open S solution_close`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    teacher_system: str
    """System prompt of the teacher; empty: no system turn."""
    student_system: str
    solution_open: str
    solution_close: str
    explanation_open: str
    explanation_close: str
    thought_open: str
    thought_close: str
    separator: str = "\n\n"
    think_prefix: str = "\n\n"
    """Prefilled after the opening tag on both sides."""
    score_think_prefix: bool = True
    """Whether the prefix's tokens belong to the think span. The reference code, and `rlt`: yes.
    `rlt-paper`: no, only tokens that the teacher wrote are the explanation (paper, eq. 4)."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Every tag; none may occur in a solution."""
        return (
            self.solution_open, self.solution_close, self.explanation_open,
            self.explanation_close, self.thought_open, self.thought_close,
        )  # fmt: skip


def shipped() -> list[str]:
    """Names of the formats that come with the package."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def load_format(name: str) -> PromptFormat:
    """A shipped format by name, or a JSON file by path. Raises UserError."""
    if name in shipped():
        text = (FOLDER / f"{name}.json").read_text()
    elif Path(name).is_file():
        text = Path(name).read_text()
    else:
        raise UserError(f"prompt_format={name!r}: neither a file nor one of {', '.join(shipped())}")
    try:
        return PromptFormat.model_validate(json.loads(text))
    except (ValueError, ValidationError) as error:
        raise UserError(f"prompt format {name}: {error}") from None
