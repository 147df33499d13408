"""Score explanations by any two models; the result needs no store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError
from transformers.utils import logging

from rlt_core.config import (
    ArtifactModel,
    DType,
    FolderModel,
    ModelSource,
    RewardSpec,
    ScratchModel,
    StageResources,
)
from rlt_core.data.imports import ExplanationRow, read_explanations
from rlt_core.errors import UserError
from rlt_core.hf_hub import folder_digest
from rlt_core.models import compute_dtype, local_folder, on_device, try_folder, try_loading
from rlt_core.progress import Progress
from rlt_core.prompts.format import RECORD, PromptFormat, Role, load_format, require_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.scoring import ContextBuilder, score_contexts
from rlt_core.sql.schemas import SCORES
from rlt_core.stages import STAGES
from rlt_core.store import Store

if TYPE_CHECKING:
    import pandas as pd

GIVEN = ("trace_id", "question_id", "seed", "teacher", "student", "sample", "closed")
"""Columns of `scores` that say which explanation it is, not how it scored."""
MEASURED = [f.name for f in SCORES if f.name not in GIVEN and not pa.types.is_list(f.type)]
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

        dtype = compute_dtype(self.dtype, self.resources.device)

        @cache
        def models() -> list[Any]:
            return [
                try_loading(folder, dtype, *found, name)
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


def score_explanations(
    rows: pd.DataFrame | Iterable[Mapping[str, Any]],
    teacher: str | Path,
    student: str | Path,
    *,
    prompt_format: str = "rlt",
    reward: RewardSpec | None = None,
    dtype: DType = "float32",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    allow_other_format: bool = False,
    columns: Mapping[str, str] | None = None,
    store: str | None = None,
) -> pd.DataFrame:
    """Return the rows with reward, parts, baselines, diagnostics, and rank within their question.

    `rows` have `question`, `solution`, `explanation` and optionally `closed`, or `columns` maps
    these to their names. `teacher` and `student` are named as in `rlt score`; `store`: where names
    are looked up, by default RLT_STORE. `reward`: by default the paper's, with the KL over the
    whole vocabulary, since the teacher did not sample the explanations.

    Raises UserError for rows, models or formats that cannot be used.
    """
    import pandas as pd

    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    format = load_format(prompt_format)
    records: list[Any] = frame.to_dict("records")
    found = read_explanations(records, format, columns)
    place = store or os.environ.get("RLT_STORE", "rlt-store")
    with TemporaryDirectory() as folder:
        teacher_folder, student_folder = (
            named_model(role, str(name), lambda: Store(place), Path(folder))[0]
            for role, name in (("teacher", teacher), ("student", student))
        )
        spec, resources = reward or RewardSpec(kl="full"), StageResources(device=device)
        pair = ModelPair(
            teacher_folder, student_folder, format, spec, dtype, resources, allow_other_format
        )
        scored = pair.scorer()(found, Progress())
    return frame.assign(**{name: [row[name] for row in scored] for name in MEASURED})


def named_model(
    role: str, name: str, open_store: Callable[[], Store], out: Path
) -> tuple[Path, str]:
    """Return the folder and the name of a model: a folder, a source such as `hub:org/name@commit`
    or `package:name`, which may be converted below `out`, or an artifact by its name or key.

    Raises UserError, which begins with the role, if there is none.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder, folder.name
    try:
        source: ModelSource = TypeAdapter(ModelSource).validate_python(name)
    except ValidationError:
        source = ArtifactModel(name=name)
    try:
        match source:
            case FolderModel(path=path) if Path(path).is_dir():
                return Path(path), Path(path).name
            case FolderModel() | ScratchModel():
                raise UserError("no model can be read from it")
            case ArtifactModel():
                store = open_store()
                return store.intact(store.find(source.name, "model")) / "model", source.name
        return local_folder(source, out), name
    except UserError as error:
        raise UserError(f"{role} {name}: not a model folder, and {error}") from None
