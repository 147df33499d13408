"""student-sft: supervised training of a student on traces."""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from transformers.models.auto import AutoConfig

from rlt_core.data.trace_selection import best_fitting, choose, columns, match_tokens, rank_traces
from rlt_core.errors import UserError
from rlt_core.models import load_tokenizer
from rlt_core.prompts.renderer import Row as TrainingRow
from rlt_core.rows import read_table, table_files
from rlt_core.scoring.alignment import vocabulary_digest
from rlt_core.sql.schemas import TRACES
from rlt_core.stages import StudentSFTStageConfig
from rlt_core.training.sft import train_sft
from tasks.stage import StageContext

Row = dict[str, Any]
Tokens = Callable[[Row], int | None]
"""Returns the tokens of a trace's explanation; None if its training row is too long."""


def run(ctx: StageContext) -> dict[str, float]:
    """Train on the ids that were scored; a student of another vocabulary, on the text."""
    config = ctx.config_as(StudentSFTStageConfig)
    model, renderer = ctx.model("model"), ctx.renderer("model", "student")
    questions = {row["question_id"]: row for row in ctx.training_questions()}
    same = config.traces == "traces" and _same_vocabulary(
        ctx, vocabulary_digest(renderer.tokenizer)
    )
    positions = AutoConfig.from_pretrained(model).get_text_config().max_position_embeddings
    limit = min(config.sft.max_tokens, positions)

    def row_of(trace: Row) -> tuple[TrainingRow, int]:
        question = questions[trace["question_id"]]
        ids = trace["token_ids"] if same else renderer.encode_block(trace["text"])
        row = renderer.student_sft_row(question["question"], ids, question["solution"])
        return row, len(ids)

    def tokens_of(trace: Row) -> int | None:
        row, tokens = row_of(trace)
        return tokens if len(row.input_ids) <= limit else None

    traces, metrics, share = _chosen(ctx, config, questions, tokens_of)
    keep = set(choose(sorted({t["question_id"] for t in traces}), config.n_questions, ctx.seed))
    traces = [trace for trace in traces if trace["question_id"] in keep]
    if not traces:
        raise UserError(f"{ctx.spec.name}: there is no trace to train on")
    sft = config.sft
    if sft.steps is not None and share < 1:  # as many passes over a share of the rows as over all
        sft = sft.model_copy(update={"steps": max(1, round(sft.steps * share))})
    trained = train_sft(model, [row_of(each)[0] for each in traces], sft, ctx.training(config.seed))
    return {
        **trained,
        **metrics,
        "traces": 0 if config.traces == "none" else len(traces),
        "questions": len(keep),
        "explanation_tokens": sum(tokens_of(trace) or 0 for trace in traces),
    }


def _chosen(
    ctx: StageContext, config: StudentSFTStageConfig, questions: dict[str, Row], tokens_of: Tokens
) -> tuple[list[Row], dict[str, float], float]:
    """Choose traces by the config. Returns them, metrics, and the share of the rows that the whole
    set would have."""
    if config.traces == "none":
        return [{"question_id": name, "text": ""} for name in questions], {}, 1.0
    if config.traces == "dataset":
        own = {name: row["trace"] for name, row in questions.items() if row["trace"]}
        return [{"question_id": name, "text": text} for name, text in own.items()], {}, 1.0
    folder = ctx.tables("traces")
    if config.rank is None and not config.fits:
        return list(_traces(folder)), {}, 1.0
    scores, tokens = ctx.rows("scores", columns=columns(config.order)), {}
    if config.fits or config.token_matched:  # among the questions that `n_questions` keeps
        names = sorted({row["question_id"] for row in scores})
        keep = set(choose(names, config.n_questions, ctx.seed))
        scores = [row for row in scores if row["question_id"] in keep]
        for trace in _traces(folder, {row["trace_id"] for row in scores}):
            if (count := tokens_of(trace)) is not None:
                tokens[trace["trace_id"]] = count
    ranks = rank_traces(scores, config.order, config.seed)
    if config.fits:
        fitting = best_fitting(scores, ranks, tokens)
        if not fitting.traces:
            raise UserError(
                f"{ctx.spec.name}: no scored trace of {fitting.no_trace_fits} questions makes a "
                f"row of at most {config.sft.max_tokens} tokens that fits into the model; raise "
                "max_tokens of the student's recipe"
            )
        counts: dict[str, float] = {
            "no_trace_fits": fitting.no_trace_fits,
            "not_first_choice": fitting.not_first_choice,
        }
        return list(_traces(folder, fitting.traces)), counts, 1.0
    of_rank = {name for name, rank in ranks.items() if rank == config.rank}
    if not config.token_matched:
        return list(_traces(folder, of_rank)), {}, 1.0
    kept = of_rank & match_tokens(scores, ranks, tokens, config.seed).keys()
    # The training drops rows that are too long, so their tokens do not count.
    share = len(kept & tokens.keys()) / max(1, len(of_rank & tokens.keys()))
    return list(_traces(folder, kept)), {}, share


def _traces(folder: Path, names: Collection[str] | None = None) -> Iterator[Row]:
    """Yield traces of an artifact in its order, file by file: all, or those named."""
    wanted = None if names is None else pa.array(sorted(names), pa.string())
    for file in table_files(folder, "traces"):
        shown = ["trace_id", "question_id", "text", "token_ids"]
        table = read_table(file, columns=shown, schema=TRACES)
        if wanted is not None:
            table = table.filter(pc.is_in(table["trace_id"], value_set=wanted))
        yield from table.to_pylist()


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
