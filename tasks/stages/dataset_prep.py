"""dataset-prep: a source of questions → the table `questions`, checked and split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlt_core.data.generators.countdown import (
    EVALUATION_QUESTIONS,
    EVALUATION_SEED,
    countdown_questions,
)
from rlt_core.data.prepare import prepare_questions
from rlt_core.errors import UserError
from rlt_core.evaluation.benchmarks import benchmark_task, own_task
from rlt_core.hf_hub import UNPINNED
from rlt_core.models import load_tokenizer, tiny_tokenizer
from rlt_core.prompts.renderer import Renderer
from rlt_core.rows import read_rows
from rlt_core.stages import DatasetPrepConfig
from tasks.stage import StageContext


def run(ctx: StageContext) -> dict[str, float]:
    """Use the format's tokenizer for a scratch model, else the model's own."""
    config = ctx.config_as(DatasetPrepConfig)
    if "tokenizer" in ctx.manifests:
        tokenizer = load_tokenizer(ctx.model("tokenizer"))
    else:
        tokenizer = tiny_tokenizer(config.format)
    paths = {name: ctx.spec.paths.get(name) for name in ("source", "test_source")}
    data = config.data.replaced(**{name: path for name, path in paths.items() if path})
    # The teacher's prompts alone are measured; a system prompt of the data's own is the student's.
    format = config.format.model_copy(update={"student_system": ""})
    renderer = Renderer(format, tokenizer)
    evaluated = {name: _evaluated(name, commit) for name, commit in config.evaluated.items()}
    for name, own in config.benchmarks.items():
        source = ctx.spec.paths.get(name, own.source)
        evaluated[name] = own_task(name, own.model_copy(update={"source": source})).questions
    tested = []
    if "tested" in ctx.manifests:
        rows = read_rows(ctx.tables("tested"), "questions")
        tested = [row for row in rows if row["split"] == "test"]
    return prepare_questions(data, renderer, ctx.out, ctx.progress, evaluated, tested)


def _evaluated(name: str, commit: str) -> Sequence[Mapping[str, Any]]:
    """Read all questions of an evaluation set, as evaluation does."""
    if name == "countdown":
        return countdown_questions(EVALUATION_QUESTIONS, EVALUATION_SEED)
    if commit == UNPINNED:
        raise UserError(
            f"evaluation set {name}, with which training questions are compared: run `rlt fetch` "
            f"for this profile while online, or name a commit in evaluation.revisions.{name}"
        )
    return benchmark_task(name, revision=commit).questions
