"""dataset-prep: a source of questions → the table `questions`, checked and split."""

from __future__ import annotations

from rlt_core.data.prepare import prepare_questions
from rlt_core.models import load_tokenizer, tiny_tokenizer
from rlt_core.prompts import Prompter
from rlt_core.stages import DatasetPrepConfig
from tasks.job import Job


def run(job: Job) -> dict[str, float]:
    """A scratch model's tokenizer follows from the format; another's comes with the model."""
    config = job.config_as(DatasetPrepConfig)
    if "tokenizer" in job.manifests:
        tokenizer = load_tokenizer(job.model("tokenizer"))
    else:
        tokenizer = tiny_tokenizer(config.format)
    data = config.data.model_copy(
        update={"source": job.spec.paths.get("source", config.data.source)}
    )
    prompter = Prompter(config.format, tokenizer)
    return prepare_questions(data, prompter, job.out, job.control)
