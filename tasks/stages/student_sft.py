"""student-sft: distillation of a student on traces, as they are."""

from __future__ import annotations

from typing import Any

from rlt_core.data.subsets import choose
from rlt_core.errors import UserError
from rlt_core.models import load_tokenizer, vocabulary_digest
from rlt_core.prompts import Prompter
from rlt_core.rows import read_rows
from rlt_core.stages import StudentSFTStageConfig
from rlt_core.training.sft import train_sft
from tasks.job import Job

Row = dict[str, Any]


def run(job: Job) -> dict[str, float]:
    """Trains on the ids that were scored; a student of another vocabulary, on the text."""
    config = job.config_as(StudentSFTStageConfig)
    model = job.model("model")
    tokenizer = load_tokenizer(model)
    prompter = Prompter(config.format, tokenizer)
    questions = {
        row["question_id"]: row
        for row in read_rows(job.tables("questions"), "questions")
        if row["split"] == "train"
    }
    traces = _dataset_traces(questions) if config.traces == "dataset" else _traces(job, config)
    chosen = choose(
        sorted({trace["question_id"] for trace in traces}), config.n_questions, job.seed
    )
    keep = set(chosen)
    traces = [trace for trace in traces if trace["question_id"] in keep]
    if not traces:
        raise UserError(f"{job.spec.name}: there is no trace to train on")
    same = config.traces == "traces" and _same_vocabulary(job, vocabulary_digest(tokenizer))
    rows = []
    for trace in traces:
        question = questions[trace["question_id"]]
        think_ids = trace["token_ids"] if same else prompter.encode(trace["text"])
        rows.append(prompter.student_sft_row(question["question"], think_ids, question["solution"]))
    metrics = train_sft(
        model,
        rows,
        config.sft,
        seed=config.seed,
        stage=job.spec.stage,
        out=job.out,
        work=job.work,
        resources=job.resources,
        control=job.control,
    )
    return {**metrics, "traces": len(traces), "questions": len(keep)}


def _dataset_traces(questions: dict[str, Row]) -> list[Row]:
    """The data set's own traces, as text."""
    return [
        {"question_id": name, "text": row["trace"]}
        for name, row in questions.items()
        if row["trace"]
    ]


def _traces(job: Job, config: StudentSFTStageConfig) -> list[Row]:
    """The traces that were asked for: all, or those of one rank."""
    traces = read_rows(
        job.tables("traces"), "traces", ["trace_id", "question_id", "text", "token_ids"]
    )
    if config.rank is None:
        return traces
    scores = read_rows(job.tables("scores"), "scores", ["trace_id", "rank"])
    ranked = {row["trace_id"] for row in scores if row["rank"] == config.rank}
    return [trace for trace in traces if trace["trace_id"] in ranked]


def _same_vocabulary(job: Job, digest: str) -> bool:
    """Whether the traces' ids are ids of the student: those of whose tokenizer wrote them."""
    inputs = job.manifests["traces"].inputs
    ref = inputs.get("teacher") or inputs["tokenizer"]
    writer = job.store.manifest(ref.kind, ref.key)
    if writer is None:
        raise UserError(f"{job.spec.name}: the traces' writer ({ref.key}) is not in the store")
    return vocabulary_digest(load_tokenizer(job.store.local(writer) / "model")) == digest
