"""Score explanations by any two local models, without a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_args

from rlt_core.config import DType, RewardSpec, StageResources
from rlt_core.data.imports import ExplanationRow
from rlt_core.hf_hub import folder_digest
from rlt_core.models import on_device, try_folder, try_loading
from rlt_core.progress import Progress
from rlt_core.prompts.format import RECORD, PromptFormat, Role, require_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.scoring import ContextBuilder, score_contexts
from rlt_core.stages import STAGES

Row = dict[str, Any]
Scorer = Callable[[Sequence[ExplanationRow], Progress], list[Row]]
"""Scores explanations, all of a question together: they are ranked."""


@dataclass(frozen=True)
class ModelPair:
    """A teacher and a student, and how they score."""

    teacher: Path
    """Model folder; its log-probs are pi_T."""
    student: Path
    """Model folder; its log-probs are pi_S."""
    format: PromptFormat
    spec: RewardSpec
    dtype: DType
    resources: StageResources
    allow_other_format: bool = False
    """Whether the models may have been trained with another format."""
    names: Mapping[Role, str] = field(default_factory=dict)
    """Names of the models in the table; by default their folders'."""

    def name(self, role: Role) -> str:
        """Return a model's name in the table."""
        folder = self.teacher if role == "teacher" else self.student
        return self.names.get(role, folder.name)

    def identity(self) -> list[str]:
        """Return everything that determines the scores of an explanation."""
        return [
            str(STAGES["trace-scoring"].version),
            *(folder_digest(folder) for folder in (self.teacher, self.student)),
            self.format.model_dump_json(), self.spec.model_dump_json(), self.dtype,
            *(self.name(role) for role in get_args(Role)),
        ]  # fmt: skip

    def scorer(self) -> Scorer:
        """Check both models; return the function that scores, which loads them when first needed.

        Raises UserError for a folder that is no model, for another prompt format, and for different
        vocabularies unless the reward's `alignment` is `text`.
        """
        if not self.allow_other_format:
            roles: dict[Role, Path] = {"teacher": self.teacher, "student": self.student}
            for role, folder in roles.items():
                fix = f"add --prompt-format {folder / RECORD}, or --allow-other-format"
                require_format(folder, self.format, role, f"--{role} {folder}", fix)
        folders = (self.student, self.teacher)
        names = (f"--student {self.student}", f"--teacher {self.teacher}")
        tried = [try_folder(folder, name) for folder, name in zip(folders, names, strict=True)]
        of_student, of_teacher = (Renderer(self.format, tokenizer) for tokenizer, _ in tried)
        builder = ContextBuilder(of_student, of_teacher, self.spec.alignment, (names[1], names[0]))

        @cache
        def models() -> list[Any]:
            return [
                try_loading(folder, self.dtype, *found, name)
                for folder, found, name in zip(folders, tried, names, strict=True)
            ]

        def score(rows: Sequence[ExplanationRow], progress: Progress) -> list[Row]:
            student, teacher = models()
            return score_contexts(
                [self._trace(row) for row in rows],
                [builder.contexts(row.question, row.solution, row.text) for row in rows],
                student=self.name("student"),
                load_student=lambda: on_device(student, self.resources),
                load_teacher=lambda: on_device(teacher, self.resources),
                spec=self.spec,
                max_tokens=min(_positions(student), _positions(teacher)),
                tokens_per_batch=self.resources.tokens_per_batch,
                words=builder.student.words,
                progress=progress,
            )

        return score

    def _trace(self, row: ExplanationRow) -> Row:
        return {
            "trace_id": f"{row.question_id}-{row.sample}",
            "question_id": row.question_id,
            "seed": 0,
            "teacher": self.name("teacher"),
            "sample": row.sample,
            "text": row.text,
            "closed": row.closed,
            "finish_reason": None,
        }


def _positions(model: Any) -> int:
    return int(model.config.get_text_config().max_position_embeddings)
