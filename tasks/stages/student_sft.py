"""student-sft: supervised training of a student on traces."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from transformers import AutoConfig

from rlt_core.config import SFTConfig
from rlt_core.data.trace_selection import best_fitting, choose, columns, match_tokens, rank_traces
from rlt_core.errors import UserError
from rlt_core.models import load_tokenizer
from rlt_core.prompts.renderer import Renderer
from rlt_core.prompts.renderer import Row as TrainingRow
from rlt_core.rows import read_table, table_files
from rlt_core.scoring.alignment import vocabulary_digest
from rlt_core.sql.schemas import TRACES
from rlt_core.stages import StudentSFTStageConfig
from rlt_core.training.sft import train_sft
from tasks.stage import StageContext

Row = dict[str, Any]


@dataclass(frozen=True)
class _Chosen:
    """The traces to learn from."""

    traces: list[Row]
    metrics: dict[str, float] = field(default_factory=dict)
    share: float = 1.0
    """Share of the rows that the whole set would have."""


@dataclass(frozen=True)
class _Student:
    """How the student reads questions and traces."""

    renderer: Renderer
    questions: dict[str, Row]
    """The training questions by id."""
    same_vocabulary: bool
    """Whether the traces' ids are the student's."""
    max_tokens: int
    """Limit of a training row."""

    def rows(self, traces: list[Row]) -> tuple[list[TrainingRow], int]:
        """Return the training rows, with the ids that were scored or, for another vocabulary, the
        ids of the text; and the explanation tokens in rows that fit."""
        rows, tokens = [], 0
        for trace in traces:
            question = self.questions[trace["question_id"]]
            same = self.same_vocabulary
            think_ids = trace["token_ids"] if same else self.renderer.encode_block(trace["text"])
            rows.append(
                self.renderer.student_sft_row(question["question"], think_ids, question["solution"])
            )
            if len(rows[-1].input_ids) <= self.max_tokens:
                tokens += len(think_ids)
        return rows, tokens

    def fitting(self, folder: Path, question_of: Mapping[str, str]) -> dict[str, int]:
        """Return trace id -> tokens for the traces in `question_of` (trace -> question) whose rows
        fit."""
        column = "token_ids" if self.same_vocabulary else "text"
        around = {name: self._around(name) for name in set(question_of.values())}
        tokens = {}
        for table in _trace_tables(folder, ["trace_id", column], question_of):
            lengths = (
                pc.list_value_length(table[column]).to_pylist()
                if self.same_vocabulary
                else [len(self.renderer.encode_block(text)) for text in table[column].to_pylist()]
            )
            for trace, length in zip(table["trace_id"].to_pylist(), lengths, strict=True):
                if around[question_of[trace]] + length <= self.max_tokens:
                    tokens[trace] = length
        return tokens

    def _around(self, name: str) -> int:
        """Tokens of a question's row without its explanation."""
        row = self.questions[name]
        return len(self.renderer.student_sft_row(row["question"], [], row["solution"]).input_ids)


def run(ctx: StageContext) -> dict[str, float]:
    """Train on the ids that were scored; a student of another vocabulary, on the text."""
    config = ctx.config_as(StudentSFTStageConfig)
    model = ctx.model("model")
    tokenizer = load_tokenizer(model)
    questions = {row["question_id"]: row for row in ctx.training_questions()}
    same = config.traces == "traces" and _same_vocabulary(ctx, vocabulary_digest(tokenizer))
    limit = min(config.sft.max_tokens, _positions(model))
    student = _Student(ctx.renderer("model", "student"), questions, same, limit)
    chosen = _chosen(ctx, config, student)
    names = sorted({trace["question_id"] for trace in chosen.traces})
    keep = set(choose(names, config.n_questions, ctx.seed))
    traces = [trace for trace in chosen.traces if trace["question_id"] in keep]
    if not traces:
        raise UserError(f"{ctx.spec.name}: there is no trace to train on")
    rows, explanation_tokens = student.rows(traces)
    sft = _scaled(config.sft, chosen.share)
    metrics = train_sft(model, rows, sft, ctx.training(config.seed))
    return {
        **metrics,
        **chosen.metrics,
        "traces": 0 if config.traces == "none" else len(traces),
        "questions": len(keep),
        "explanation_tokens": explanation_tokens,
    }


def _chosen(ctx: StageContext, config: StudentSFTStageConfig, student: _Student) -> _Chosen:
    """Choose traces by the config."""
    questions = student.questions
    if config.traces == "none":
        return _Chosen([{"question_id": name, "text": ""} for name in questions])
    if config.traces == "dataset":
        own = {name: row["trace"] for name, row in questions.items() if row["trace"]}
        return _Chosen([{"question_id": name, "text": text} for name, text in own.items()])
    folder = ctx.tables("traces")
    if config.rank is None and not config.fits and not config.token_matched:
        return _Chosen(_traces(folder))
    scores, tokens = ctx.rows("scores", columns=columns(config.order)), {}
    if config.fits or config.token_matched:  # among the questions that `n_questions` keeps
        names = sorted({row["question_id"] for row in scores})
        keep = set(choose(names, config.n_questions, ctx.seed))
        scores = [row for row in scores if row["question_id"] in keep]
        question_of = {row["trace_id"]: row["question_id"] for row in scores}
        tokens = student.fitting(folder, question_of)
    ranks = rank_traces(scores, config.order, config.seed)
    if config.fits:
        fitting = best_fitting(scores, ranks, tokens)
        if not fitting.traces:
            raise UserError(
                f"{ctx.spec.name}: no scored trace of {fitting.no_trace_fits} questions makes a "
                f"row of at most {student.max_tokens} tokens; raise max_tokens of the student's "
                "recipe"
            )
        metrics = {
            "no_trace_fits": float(fitting.no_trace_fits),
            "not_first_choice": float(fitting.not_first_choice),
        }
        return _Chosen(_traces(folder, fitting.traces), metrics)
    of_rank = {name for name, rank in ranks.items() if rank == config.rank}
    if not config.token_matched:
        return _Chosen(_traces(folder, of_rank))
    kept = of_rank & match_tokens(scores, ranks, tokens, config.seed).keys()
    # The training drops rows that are too long, so their tokens do not count.
    share = len(kept & tokens.keys()) / max(1, len(of_rank & tokens.keys()))
    return _Chosen(_traces(folder, kept), share=share)


def _scaled(sft: SFTConfig, share: float) -> SFTConfig:
    """Scale the steps so that a share of the rows gets as many passes as all of them."""
    if sft.steps is None or share == 1.0:
        return sft
    return sft.model_copy(update={"steps": max(1, round(sft.steps * share))})


def _positions(model: Path) -> int:
    return int(AutoConfig.from_pretrained(model).get_text_config().max_position_embeddings)


def _traces(folder: Path, names: Collection[str] | None = None) -> list[Row]:
    """Traces of an artifact in its order: all, or those named."""
    tables = _trace_tables(folder, ["trace_id", "question_id", "text", "token_ids"], names)
    return [row for table in tables for row in table.to_pylist()]


def _trace_tables(
    folder: Path, names: list[str], traces: Collection[str] | None
) -> Iterator[pa.Table]:
    """Yield columns of some traces file by file, so that the others never become objects."""
    wanted = None if traces is None else pa.array(sorted(traces), pa.string())
    for file in table_files(folder, "traces"):
        table = read_table(file, columns=names, schema=TRACES)
        if wanted is not None:
            table = table.filter(pc.is_in(table["trace_id"], value_set=wanted))
        yield table


def _same_vocabulary(ctx: StageContext, digest: str) -> bool:
    """Whether the tokenizer that wrote the traces' ids has the student's vocabulary."""
    writer = ctx.manifests["traces"]
    while writer.ref.kind != "model":  # a stage of the user's may be in between
        inputs = writer.inputs
        ref = inputs.get("teacher") or inputs.get("tokenizer") or inputs["traces"]
        found = ctx.store.manifest(ref.kind, ref.key)
        if found is None:
            raise UserError(f"{ctx.spec.name}: the traces' writer ({ref.key}) is not in the store")
        writer = found
    folder = ctx.store.intact(writer, ".json") / "model"  # not the weights
    return vocabulary_digest(load_tokenizer(folder)) == digest
