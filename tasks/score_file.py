"""Score the explanations of a file with any two local models, into the table `scores`."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc
from transformers.utils import logging

from rlt_core.config import RewardSpec, StageResources
from rlt_core.config.base import DType
from rlt_core.data.imports import EXPLANATION_FIELDS, ExplanationRow, read_explanations
from rlt_core.hf_hub import folder_digest
from rlt_core.models import on_device, try_folder, try_loading
from rlt_core.progress import Progress
from rlt_core.prompts.format import RECORD, PromptFormat, Role, require_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.rows import read_table, table_files, write_table
from rlt_core.scoring import ContextBuilder, score_contexts
from rlt_core.sql.schemas import SCORES
from rlt_core.stages import STAGES
from rlt_core.store import Workspace
from rlt_core.store.files import Files, sha256_of
from tasks.shards import LongWork, in_shards

Numbered = tuple[int, ExplanationRow]
Row = dict[str, Any]


@dataclass(frozen=True)
class Scoring:
    """The models, the files and the reward of one call."""

    teacher: Path
    """Model folder; its log-probs are pi_T."""
    student: Path
    """Model folder; its log-probs are pi_S."""
    input: Path
    output: Path
    format: PromptFormat
    spec: RewardSpec
    dtype: DType
    resources: StageResources
    allow_other_format: bool = False
    """Whether the models may have been trained with another format."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Names of the input's columns, where they are not those of `read_explanations`."""
    names: Mapping[Role, str] = field(default_factory=dict)
    """Names of the models in the table; by default their folders'."""

    def name(self, role: Role) -> str:
        """Return a model's name in the table."""
        folder = self.teacher if role == "teacher" else self.student
        return self.names.get(role, folder.name)

    def key(self) -> str:
        """Return the hash of everything that determines the scores; shards of other work differ."""
        models = [folder_digest(folder) for folder in (self.teacher, self.student)]
        parts = [
            str(STAGES["trace-scoring"].version), *models, sha256_of(self.input),
            self.format.model_dump_json(), self.spec.model_dump_json(), self.dtype,
            *(self.name(role) for role in get_args(Role)), repr(sorted(self.columns.items())),
        ]  # fmt: skip
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def save_parquet(table: pa.Table, output: Path) -> None:
    """Write the table completely or not at all."""
    half_written = output.with_name(output.name + ".part")
    write_table(half_written, table)
    half_written.rename(output)


def score_file(
    scoring: Scoring, progress: Progress, save: Callable[[pa.Table, Path], None] = save_parquet
) -> pa.Table:
    """Score every row of the input; row i of the output, which `save` writes, is row i of the
    input: its question, solution and explanation, then the columns of the table `scores`.

    Returns the written table without its per-token lists. Shards commit beside the output
    (`{output}.work`, removed at the end), so that an interrupted call continues where it was.
    Raises UserError for bad rows, a folder that is no model, and models of different vocabularies;
    Stopped on request.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = list(enumerate(read_explanations(scoring.input, scoring.format, scoring.columns)))
    by_question: dict[str, list[Numbered]] = {}
    for number, row in rows:
        by_question.setdefault(row.question_id, []).append((number, row))
    shards = scoring.output.with_name(scoring.output.name + ".work")
    workspace = Workspace(Files(str(shards.absolute())), scoring.key())
    groups = list(by_question.values())
    with TemporaryDirectory() as folder:
        work = LongWork(Path(folder), workspace, progress)
        compute = _scorer(scoring)
        in_shards(work, "scores", groups, scoring.resources.shard_questions, compute, _length)
        tables = [read_table(file) for file in table_files(work.out, "scores")]
    order = pa.array([number for group in groups for number, _ in group])
    table = pa.concat_tables(tables).take(pc.sort_indices(order))
    texts = zip(*((row.question, row.solution, row.text) for _, row in rows), strict=True)
    for place, (name, column) in enumerate(zip(EXPLANATION_FIELDS, texts, strict=False)):
        table = table.add_column(place, name, pa.array(column, pa.string()))
    table = table.replace_schema_metadata({"rlt.reward": scoring.spec.model_dump_json()})
    save(table, scoring.output)
    shutil.rmtree(shards)
    return table.drop_columns([f.name for f in SCORES if pa.types.is_list(f.type)])


def _length(group: Sequence[Numbered]) -> int:
    """Return the characters of a question's longest explanation."""
    return max(len(row.text) for _, row in group)


def _scorer(scoring: Scoring) -> Callable[[Sequence[list[Numbered]], Progress], list[Row]]:
    """Check both models; return the function that scores a shard, which loads them when needed."""
    if not scoring.allow_other_format:
        roles: dict[Role, Path] = {"teacher": scoring.teacher, "student": scoring.student}
        for role, folder in roles.items():
            fix = f"add --prompt-format {folder / RECORD}, or --allow-other-format"
            require_format(folder, scoring.format, role, f"--{role} {folder}", fix)
    folders = (scoring.student, scoring.teacher)
    names = (f"--student {scoring.student}", f"--teacher {scoring.teacher}")
    tried = [try_folder(folder, name) for folder, name in zip(folders, names, strict=True)]
    tokenizers = [tokenizer for tokenizer, _ in tried]
    of_student, of_teacher = (Renderer(scoring.format, each) for each in tokenizers)
    builder = ContextBuilder(of_student, of_teacher, scoring.spec.alignment, (names[1], names[0]))

    @cache
    def models() -> list[Any]:
        return [
            try_loading(folder, scoring.dtype, *found, name)
            for folder, found, name in zip(folders, tried, names, strict=True)
        ]

    def score(shard: Sequence[list[Numbered]], progress: Progress) -> list[Row]:
        student, teacher = models()
        rows = [row for group in shard for _, row in group]
        return score_contexts(
            [_trace(scoring, row) for row in rows],
            [builder.contexts(row.question, row.solution, row.text) for row in rows],
            student=scoring.name("student"),
            load_student=lambda: on_device(student, scoring.resources),
            load_teacher=lambda: on_device(teacher, scoring.resources),
            spec=scoring.spec,
            max_tokens=min(_positions(student), _positions(teacher)),
            tokens_per_batch=scoring.resources.tokens_per_batch,
            words=builder.student.words,
            progress=progress,
        )

    return score


def _trace(scoring: Scoring, row: ExplanationRow) -> Row:
    return {
        "trace_id": f"{row.question_id}-{row.sample}",
        "question_id": row.question_id,
        "seed": 0,
        "teacher": scoring.name("teacher"),
        "sample": row.sample,
        "text": row.text,
        "closed": row.closed,
        "finish_reason": None,
    }


def _positions(model: Any) -> int:
    return int(model.config.get_text_config().max_position_embeddings)
