"""dataset-prep: a source of questions → the table `questions`, checked and split."""

from typing import Any

from rlt_core.data.prepare import prepare_questions
from rlt_core.evaluation.benchmarks import benchmark_task, own_task
from rlt_core.models import load_tokenizer, tiny_tokenizer
from rlt_core.prompts.renderer import Renderer
from rlt_core.stages import DatasetPrepConfig
from tasks.stage import StageContext


def run(ctx: StageContext) -> dict[str, float]:
    """Use the format's tokenizer for a scratch model, else the model's own."""
    config = ctx.config_as(DatasetPrepConfig)
    if "tokenizer" in ctx.manifests:
        tokenizer = load_tokenizer(ctx.model("tokenizer"))
    else:
        tokenizer = tiny_tokenizer(config.format)
    data = config.data.located(ctx.spec.paths)
    # The teacher's prompts alone are measured; a system prompt of the data's own is the student's.
    format = config.format.model_copy(update={"student_system": ""})
    renderer = Renderer(format, tokenizer)
    evaluated: dict[str, Any] = {
        name: benchmark_task(name, revision=commit).questions
        for name, commit in config.evaluated.items()
    }
    for name, own in config.benchmarks.items():
        evaluated[name] = own_task(name, own.located(ctx.spec.paths)).questions
    tested = []
    if "tested" in ctx.manifests:
        tested = [row for row in ctx.rows("tested", "questions") if row["split"] == "test"]
    return prepare_questions(data, renderer, ctx.out, ctx.progress, evaluated, tested)
