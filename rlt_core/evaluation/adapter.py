"""All that knows lighteval (pinned to 0.13.0), which takes ten seconds to import.

lighteval's `Pipeline` asks `_Model` for the completions, which are graded already, and aggregates
them with our metric. Version 0.13 needs some help:

- Its `Registry` imports every built-in task, and `tasks/tiny_benchmarks.py` downloads a pickle on
  import (`requests.exceptions.ConnectionError` offline). `_Pipeline` does without a registry.
- A task loads its data through `datasets` and the hub; ours have their rows already.
- A model needs a `_cache` with `_init_registry`.
- Importing it turns gradients off in the whole process.
"""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # lighteval asks git for its own commit

import torch

with torch.set_grad_enabled(torch.is_grad_enabled()):  # restores what the import changes
    from lighteval.pipeline import ParallelismManager, Pipeline, PipelineParameters
from lighteval.logging.evaluation_tracker import EvaluationTracker
from lighteval.metrics.metrics_sample import SampleLevelComputation
from lighteval.metrics.utils.metric_utils import CorpusLevelMetric
from lighteval.models.abstract_model import LightevalModel, ModelConfig
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.lighteval_task import LightevalTask, LightevalTaskConfig
from lighteval.tasks.requests import Doc, SamplingMethod

from rlt_core.evaluation.benchmarks import EvalTask

SPLIT = "test"

Row = dict[str, Any]
Score = Callable[[Sequence[Row]], list[Row]]
"""Converts the graded rows of one task to its rows of `eval_scores`."""


def run_tasks(
    tasks: Sequence[EvalTask], samples: Sequence[Row], score: Score, out: Path
) -> tuple[list[Row], dict[str, float]]:
    """Score graded rows of `eval_samples` with lighteval's pipeline.

    Returns rows of `eval_scores`, and `{task}/{metric}` -> lighteval's aggregate, NaN if nothing
    could be graded. lighteval requires the folder `out`, to which nothing is written. Raises
    KeyError for a question without completions.
    """
    rows: dict[tuple[str, str], list[Row]] = {}
    for row in samples:
        rows.setdefault((row["task"], row["question_id"]), []).append(row)
    scores: list[Row] = []

    def aggregate(graded: list[list[Row]]) -> dict[str, float]:
        """lighteval keeps the values, `scores` also has their intervals."""
        found = score([row for of_question in graded for row in of_question])
        scores.extend(found)
        return {row["metric"]: math.nan if row["value"] is None else row["value"] for row in found}

    made = []
    for task in tasks:
        made.append(_task(task.name, aggregate))
        lines = [
            {"question": each, "rows": rows[task.name, each["question_id"]]}
            for each in task.questions
        ]
        made[-1].dataset = {SPLIT: lines}
    pipeline = _Pipeline(made, out)
    pipeline.evaluate()
    aggregated = pipeline.evaluation_tracker.metrics_logger.metric_aggregated
    return scores, {
        f"{task.name}/{name}": value
        for task in tasks  # lighteval's name includes the number of few-shot examples
        for name, value in aggregated[f"{task.name}|0"].items()
    }


class _Pipeline(Pipeline):
    """lighteval's pipeline over tasks in memory."""

    def __init__(self, tasks: Sequence[LightevalTask], out: Path) -> None:
        self._given = tasks
        super().__init__(
            tasks="",
            pipeline_parameters=PipelineParameters(
                launcher_type=ParallelismManager.CUSTOM,
                remove_reasoning_tags=False,
                bootstrap_iters=0,
            ),
            evaluation_tracker=EvaluationTracker(output_dir=str(out), save_details=False),
            model=_Model(),
        )

    def _init_tasks_and_requests(self, tasks: str) -> None:
        """Use the given tasks; lighteval's method would ask `Registry`."""
        self.registry = None  # type: ignore[assignment]
        self.tasks_dict = {task.full_name: task for task in self._given}
        self.documents_dict = {name: task.get_docs() for name, task in self.tasks_dict.items()}
        docs = [doc for of_task in self.documents_dict.values() for doc in of_task]
        self.sampling_docs = defaultdict(list, {SamplingMethod.GENERATIVE: docs})
        self.evaluation_tracker.task_config_logger.log(self.tasks_dict)


class _Model(LightevalModel):
    """Our engine's completions as a lighteval model."""

    add_special_tokens = False
    max_length = None  # type: ignore[assignment]  # nothing is truncated
    tokenizer = None  # type: ignore[assignment]  # the renderer builds prompts as token ids

    def __init__(self) -> None:
        self.config = ModelConfig(model_name="rlt")
        self._cache = SimpleNamespace(_init_registry=lambda _: None)  # the workspace resumes

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        return [ModelResponse(text=[row["completion"] for row in _rows(doc)]) for doc in docs]

    def loglikelihood(self, docs: list[Doc]) -> list[ModelResponse]:
        raise NotImplementedError("our tasks are generative")

    loglikelihood_rolling = loglikelihood


class _Graded(SampleLevelComputation):
    """The graded rows of a question."""

    def compute(self, doc: Doc, **_: Any) -> list[Row]:  # type: ignore[override]
        return _rows(doc)


def _task(name: str, aggregate: Callable[[list[list[Row]]], dict[str, float]]) -> LightevalTask:
    metric = CorpusLevelMetric(
        metric_name="graded",
        higher_is_better=True,
        category=SamplingMethod.GENERATIVE,
        sample_level_fn=_Graded(),
        corpus_level_fn=aggregate,
    )
    config = LightevalTaskConfig(
        name=name,
        prompt_function=_doc,
        hf_repo="",
        hf_subset="",
        metrics=[metric],
        hf_avail_splits=[SPLIT],
        evaluation_splits=[SPLIT],
        few_shots_split=SPLIT,  # never used: zero shots
    )
    return LightevalTask(config)


def _doc(line: dict[str, Any], task_name: str) -> Doc:
    """Convert a question for lighteval, which does not build the prompt."""
    question = line["question"]
    gold = question["answer"] or ""
    specific = {"rows": line["rows"]}
    return Doc(query=question["question"], choices=[gold], gold_index=0, specific=specific)


def _rows(doc: Doc) -> list[Row]:
    assert doc.specific is not None  # see _doc
    rows: list[Row] = doc.specific["rows"]
    return rows
