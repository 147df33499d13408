"""trace-generation: a teacher's explanations, `n` a question, in shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlt_core.control import Control
from rlt_core.data.subsets import choose
from rlt_core.generation import open_engine, sample_seed
from rlt_core.generation.engine import Completion
from rlt_core.models import load_tokenizer
from rlt_core.prompts import Prompter
from rlt_core.rows import read_rows
from rlt_core.stages import TraceGenerationConfig
from tasks.job import Job
from tasks.shards import in_shards

Row = dict[str, Any]


def run(job: Job) -> dict[str, float]:
    """A completion's seed follows from (key, question, sample), not from its place in a batch."""
    config = job.config_as(TraceGenerationConfig)
    model, sampling = job.model("teacher"), config.sampling
    prompter = Prompter(config.format, load_tokenizer(model))
    questions = [
        row
        for row in read_rows(job.tables("questions"), "questions")
        if row["split"] == config.split
    ]
    questions = choose(questions, sampling.n_questions, config.seed)
    with open_engine(model, sampling.dtype, job.resources) as engine:

        def compute(shard: Sequence[Row], control: Control) -> list[Row]:
            completions = engine.generate(
                [prompter.teacher_prompt(row["question"], row["solution"]) for row in shard],
                sampling,
                [
                    [sample_seed(job.spec.key, row["question_id"], i) for i in range(sampling.n)]
                    for row in shard
                ],
                prompter.stop_ids,
                control=control,
            )
            return [
                _row(job, prompter, row, sample, completion)
                for row, group in zip(shard, completions, strict=True)
                for sample, completion in enumerate(group)
            ]

        in_shards(job, "traces", questions, job.resources.shard_questions, compute)
    traces = read_rows(job.out, "traces", ["closed", "finish_reason", "completion_tokens"])
    return {
        "questions": len(questions),
        "traces": len(traces),
        "unclosed": sum(not trace["closed"] for trace in traces) / len(traces),
        "cut": sum(trace["finish_reason"] == "length" for trace in traces) / len(traces),
        "mean_tokens": sum(trace["completion_tokens"] for trace in traces) / len(traces),
    }


def _row(job: Job, prompter: Prompter, question: Row, sample: int, completion: Completion) -> Row:
    explanation = prompter.split_completion(completion.ids)
    return {
        "trace_id": f"{question['question_id']}-{sample}",
        "question_id": question["question_id"],
        "seed": job.seed,
        "teacher": job.key("teacher"),
        "sample": sample,
        "text": explanation.text,
        "token_ids": explanation.ids,
        "completion_ids": completion.ids,
        "closed": explanation.closed,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": len(prompter.teacher_prompt(question["question"], question["solution"])),
        "completion_tokens": len(completion.ids),
    }
