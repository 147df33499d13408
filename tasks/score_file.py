"""Scores for anyone's explanations: a file in, the table `scores` out, by any two local models."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers.utils import logging

from rlt_core.config import RewardSpec, StageResources
from rlt_core.config.base import DType
from rlt_core.data.imports import Explanation, read_explanations
from rlt_core.hf_hub import folder_digest
from rlt_core.models import on_device, require_same_vocabulary, try_folder, try_loading
from rlt_core.progress import Progress
from rlt_core.prompts.format import RECORD, PromptFormat, Role, require_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.rows import table_files
from rlt_core.scoring import Contexts, assign_ranks, score_contexts
from rlt_core.sql.schemas import SCORES
from rlt_core.stages import STAGES
from rlt_core.store import Workspace
from rlt_core.store.files import Files, sha256_of
from tasks.shards import in_shards

Numbered = tuple[int, Explanation]


@dataclass(frozen=True)
class Scoring:
    """What to score, by whom, and into which file."""

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
    """Models may have been trained with another format."""

    def key(self) -> str:
        """Of everything that determines the scores: shards of other work are not taken up."""
        models = [folder_digest(folder) for folder in (self.teacher, self.student)]
        parts = [
            str(STAGES["trace-scoring"].version), *models, sha256_of(self.input),
            self.format.model_dump_json(), self.spec.model_dump_json(), self.dtype,
        ]  # fmt: skip
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Work:
    out: Path
    work: Workspace
    progress: Progress
    machine: int = 0
    machines: int = 1

    def is_committed(self) -> bool:
        """Nobody else works on it."""
        return False


def score_file(scoring: Scoring, progress: Progress) -> pa.Table:
    """Score every row of the input; row i of the output is row i of the input.

    Returns the table that was written, without its per-token lists. Shards commit beside the
    output (`{output}.work`), so that an interrupted call goes on where it was; the folder is
    removed at the end. Raises UserError for bad rows, a folder that is no model, and models of
    different vocabularies; Stopped on request.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = list(enumerate(read_explanations(scoring.input, scoring.format)))
    by_question: dict[str, list[Numbered]] = {}
    for number, row in rows:
        by_question.setdefault(row.question_id, []).append((number, row))
    waiting = scoring.output.with_name(scoring.output.name + ".work")
    workspace = Workspace(Files(str(waiting.absolute())), scoring.key())
    groups = list(by_question.values())
    with TemporaryDirectory() as folder:
        work = _Work(Path(folder), workspace, progress)
        compute = _Scorer(scoring)
        in_shards(work, "scores", groups, scoring.resources.shard_questions, compute, _length)
        tables = [pq.read_table(file) for file in table_files(work.out, "scores")]
    order = pa.array([number for group in groups for number, _ in group])
    table = pa.concat_tables(tables).take(pc.sort_indices(order))
    table = table.replace_schema_metadata({"rlt.reward": scoring.spec.model_dump_json()})
    half_written = scoring.output.with_name(scoring.output.name + ".part")
    pq.write_table(table, half_written, compression="zstd")
    half_written.rename(scoring.output)
    shutil.rmtree(waiting)
    return table.drop_columns([f.name for f in SCORES if pa.types.is_list(f.type)])


def _length(group: Sequence[Numbered]) -> int:
    """Characters of a question's longest explanation."""
    return max(len(row.text) for _, row in group)


class _Scorer:
    """Both models, loaded when the first shard asks for them."""

    def __init__(self, scoring: Scoring) -> None:
        self._scoring = scoring
        if not scoring.allow_other_format:
            roles: dict[Role, Path] = {"teacher": scoring.teacher, "student": scoring.student}
            for role, folder in roles.items():
                fix = f"add --prompt-format {folder / RECORD}, or --allow-other-format"
                require_format(folder, scoring.format, role, f"--{role} {folder}", fix)
        names = (f"--student {scoring.student}", f"--teacher {scoring.teacher}")
        folders = (scoring.student, scoring.teacher)
        tried = [try_folder(*each) for each in zip(folders, names, strict=True)]
        tokenizers = [tokenizer for tokenizer, _ in tried]
        require_same_vocabulary(tokenizers[1], tokenizers[0], (names[1], names[0]))
        self._student, self._teacher = (Renderer(scoring.format, each) for each in tokenizers)
        self._trials = list(zip(folders, tried, names, strict=True))
        self._models: list[Any] = []

    def __call__(self, shard: Sequence[list[Numbered]], progress: Progress) -> list[dict[str, Any]]:
        scoring = self._scoring
        if not self._models:
            self._models = [
                try_loading(folder, scoring.dtype, *tried, name)
                for folder, tried, name in self._trials
            ]
        student, teacher = self._models
        rows = [row for group in shard for _, row in group]
        contexts = [
            Contexts(
                *self._student.text_contexts(row.question, row.text, row.solution, self._teacher)
            )
            for row in rows
        ]
        scored = score_contexts(
            [self._trace(row) for row in rows],
            contexts,
            student=scoring.student.name,
            load_student=lambda: on_device(student, scoring.resources),
            load_teacher=lambda: on_device(teacher, scoring.resources),
            spec=scoring.spec,
            max_tokens=min(_positions(student), _positions(teacher)),
            tokens_per_batch=scoring.resources.tokens_per_batch,
            words=self._student.words,
            progress=progress,
        )
        return assign_ranks(scored)

    def _trace(self, row: Explanation) -> dict[str, Any]:
        return {
            "trace_id": f"{row.question_id}-{row.sample}",
            "question_id": row.question_id,
            "seed": 0,
            "teacher": self._scoring.teacher.name,
            "sample": row.sample,
            "text": row.text,
            "token_ids": self._student.encode_block(row.text),
            "closed": row.closed,
            "finish_reason": None,
        }


def _positions(model: Any) -> int:
    return int(model.config.get_text_config().max_position_embeddings)
