"""Prompt formats are data: system prompts, tags and separators as JSON files."""

from collections.abc import Mapping
from datetime import date
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from rlt_core.errors import UserError

RECORD = "prompt_format.json"
"""File in a model folder with the format that the model was trained with."""
Role = Literal["teacher", "student"]
"""The role of a model: whose prompts it reads."""
FOLDER = Path(__file__).parent / "formats"


def _tag(text: str) -> str:
    if not text.strip():
        raise ValueError("a tag cannot be empty; texts are told apart by it")
    return text


Tag = Annotated[str, AfterValidator(_tag)]


class PromptFormat(BaseModel):
    """The text around question, solution and explanation, for teacher and student.

    Teacher, assistant turn (prefilled up to T, which is generated); _ is the padding:
    `solution_open _ S _ solution_close separator explanation_open _ T _ explanation_close`.
    Student, assistant turn:
    `thought_open _ T _ thought_close separator solution_open _ S _ solution_close`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    teacher_system: str
    """System prompt of the teacher; empty: no system turn."""
    student_system: str | None
    """System prompt of the student; empty: no system turn; null: the data set's own, which a node
    reads from the table `questions` of its input `system`."""
    solution_open: Tag
    solution_close: Tag
    explanation_open: Tag
    explanation_close: Tag
    thought_open: Tag
    thought_close: Tag
    separator: str = "\n\n"
    padding: str = "\n\n"
    """Text inside every pair of tags, after the opening and before the closing one, encoded with
    them."""
    score_padding: bool = False
    """Whether padding with tokens of its own counts as part of the explanation and the solution, as
    in the reference code. Off: only their own tokens are scored (paper, eq. 3-4)."""
    template_date: date = date(2024, 7, 26)
    """Date for chat templates that ask for today's (Llama 3.2's default)."""

    @model_validator(mode="after")
    def _students_tags_differ(self) -> Self:
        tags = (self.thought_open, self.thought_close, self.solution_open, self.solution_close)
        for one, other in permutations(tags, 2):
            if one in other:
                raise ValueError(f"a student's tags {one!r} and {other!r} cannot be told apart")
        return self

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags; none may occur in a solution."""
        return (
            self.solution_open, self.solution_close, self.explanation_open,
            self.explanation_close, self.thought_open, self.thought_close,
        )  # fmt: skip

    def missing_padding(self, text: str) -> str:
        """Return the part of the padding that a text does not end with yet."""
        starts = range(len(self.padding), 0, -1)
        found = (self.padding[n:] for n in starts if text.endswith(self.padding[:n]))
        return next(found, self.padding)

    def messages(
        self, question: str, solution: str, explanation: str, system: str | None = None
    ) -> list[dict[str, str]]:
        """Return what a student is trained on as a chat, for trainers that read texts.

        `system`: the data's own system prompt, for a format that has none of its own (null).
        """
        system = system if self.student_system is None else self.student_system
        answer = (
            self.thought_open + self.padding + explanation + self.missing_padding(explanation)
            + self.thought_close + self.separator
            + self.solution_open + self.padding + solution + self.missing_padding(solution)
            + self.solution_close
        )  # fmt: skip
        turns = {"system": system, "user": question, "assistant": answer}
        return [{"role": role, "content": text} for role, text in turns.items() if text]


def record_format(model: Path, format: PromptFormat) -> None:
    """Write the format that a model was trained with beside its weights."""
    (model / RECORD).write_text(format.model_dump_json(indent=1) + "\n")


def require_format(model: Path, format: PromptFormat, role: Role, name: str, fix: str) -> None:
    """Raise UserError if a model folder records another format than the one to use.

    Imported folders record none. The other role's system prompt and the format's name are not
    compared. `name` of the model and `fix` (what to set) are for the message.
    """
    if not (model / RECORD).is_file():
        return
    recorded = _parsed((model / RECORD).read_bytes(), f"in {model / RECORD}")
    ignored = {"name", "student_system" if role == "teacher" else "teacher_system"}
    fields = [field for field in PromptFormat.model_fields if field not in ignored]
    other = [field for field in fields if getattr(recorded, field) != getattr(format, field)]
    if other:
        raise UserError(
            f"{name} was trained with prompt format {recorded.name} and is to be used with "
            f"{format.name}, which differs in {', '.join(other)}: {fix}"
        )


def label_of(config: Mapping[str, Any]) -> str | None:
    """Return the name of the prompt format in a stage's config, if it has one, with a note if the
    student's system prompt is the data's."""
    format = config.get("format")
    if format is None:
        return None
    name = str(format["name"])
    return f"{name} (system prompt of the data)" if format["student_system"] is None else name


def shipped() -> list[str]:
    """Return the names of the formats that come with the package."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def load_format(name: str) -> PromptFormat:
    """Load a shipped format by name, or a JSON file by path. Raises UserError."""
    file = FOLDER / f"{name}.json" if name in shipped() else Path(name)
    if not file.is_file():
        raise UserError(f"prompt_format={name!r}: neither a file nor one of {', '.join(shipped())}")
    return _parsed(file.read_bytes(), name)


def _parsed(text: bytes, name: str) -> PromptFormat:
    try:
        return PromptFormat.model_validate_json(text)
    except ValidationError as error:
        faults = (": ".join([*map(str, each["loc"]), each["msg"]]) for each in error.errors())
        raise UserError(f"prompt format {name}: {'; '.join(faults)}") from None
