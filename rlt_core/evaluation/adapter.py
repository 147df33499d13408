"""All that knows lighteval (pinned to 0.13.0), which takes ten seconds to import.

lighteval's `Pipeline` asks `_Model` for completions through `greedy_until`, which come graded, and
aggregates them with our metric. Version 0.13 needs some help:

- Its `Registry` imports every built-in task, and `tasks/tiny_benchmarks.py` downloads a pickle on
  import (`requests.exceptions.ConnectionError` offline). `_Pipeline` does without a registry.
- A task loads its data through `datasets` and the hub; ours have their rows already.
- A model needs a `_cache` with `_init_registry`.
- Importing it turns gradients off in the whole process.
"""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # lighteval asks git for its own commit

import torch

with torch.set_grad_enabled(torch.is_grad_enabled()):  # restores what the import changes
    from lighteval.pipeline import ParallelismManager, Pipeline, PipelineParameters
from lighteval.logging.evaluation_tracker import EvaluationTracker
from lighteval.metrics.metrics_corpus import CorpusLevelComputation
from lighteval.metrics.metrics_sample import SampleLevelComputation, SamplingMetric
from lighteval.metrics.utils.metric_utils import CorpusLevelMetric
from lighteval.models.abstract_model import LightevalModel, ModelConfig
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.lighteval_task import LightevalTask, LightevalTaskConfig
from lighteval.tasks.requests import Doc, SamplingMethod

from rlt_core.evaluation.benchmarks import EvalTask

METRIC, SPLIT = "graded", "test"

Row = dict[str, Any]
Answer = Callable[[], Sequence[Row]]
"""Completes all questions; returns graded rows of `eval_samples`."""
Score = Callable[[Sequence[Row]], list[Row]]
"""Converts the rows of one task to its rows of `eval_scores`."""


@dataclass(frozen=True)
class Results:
    """The results of lighteval."""

    samples: list[Row]
    """Rows of `eval_samples`, in the order of tasks and questions."""
    scores: list[Row]
    """Rows of `eval_scores`."""
    metrics: dict[str, float]
    """`{task}/{metric}` -> lighteval's aggregate; NaN if nothing could be graded."""


def run_tasks(
    tasks: Sequence[EvalTask],
    samples_of: Callable[[str], int],
    answer: Answer,
    score: Score,
    out: Path,
) -> Results:
    """Complete and score all tasks with lighteval's pipeline.

    `samples_of`: completions per question of a task. lighteval requires the folder `out`, to which
    nothing is written. Raises what the callbacks raise, KeyError for a question without completions
    and RuntimeError for one with too few.
    """
    metrics = {task.name: _Score(score) for task in tasks}
    made = [_task(task, samples_of(task.name), metrics[task.name]) for task in tasks]
    pipeline = _Pipeline(made, _Model(answer), out)
    pipeline.evaluate()
    details = pipeline.get_details()
    aggregated = pipeline.evaluation_tracker.metrics_logger.metric_aggregated
    return Results(
        samples=[
            row
            for task in tasks
            for detail in sorted(details[_full(task.name)], key=lambda one: int(one.doc.id))
            for row in detail.metric[METRIC]
        ],
        scores=[row for metric in metrics.values() for row in metric.rows],
        metrics={
            f"{task.name}/{name}": value
            for task in tasks
            for name, value in aggregated[_full(task.name)].items()
        },
    )


class _Pipeline(Pipeline):
    """lighteval's pipeline over tasks in memory."""

    def __init__(self, tasks: Sequence[LightevalTask], model: LightevalModel, out: Path) -> None:
        self._given = tasks
        super().__init__(
            tasks="",
            pipeline_parameters=PipelineParameters(
                launcher_type=ParallelismManager.CUSTOM,
                remove_reasoning_tags=False,
                bootstrap_iters=0,
            ),
            evaluation_tracker=EvaluationTracker(output_dir=str(out), save_details=False),
            model=model,
        )

    def _init_tasks_and_requests(self, tasks: str) -> None:
        """Use the given tasks; lighteval's method would ask `Registry`."""
        self.registry = None  # type: ignore[assignment]
        self.tasks_dict = {task.full_name: task for task in self._given}
        self.documents_dict = {name: task.get_docs() for name, task in self.tasks_dict.items()}
        docs = [doc for of_task in self.documents_dict.values() for doc in of_task]
        self.sampling_docs = defaultdict(list, {SamplingMethod.GENERATIVE: docs})
        self.evaluation_tracker.task_config_logger.log(self.tasks_dict)


@dataclass
class _Response(ModelResponse):
    """The completions of one question, with their rows of `eval_samples`."""

    rows: list[Row] = field(default_factory=list)


class _Model(LightevalModel):
    """Our engine as a lighteval model."""

    add_special_tokens = False
    max_length = None  # type: ignore[assignment]  # nothing is truncated
    tokenizer = None  # type: ignore[assignment]  # the renderer builds prompts as token ids

    def __init__(self, answer: Answer) -> None:
        self.config = ModelConfig(model_name="rlt")
        self._cache = SimpleNamespace(_init_registry=lambda _: None)  # the workspace resumes
        self._answer = answer

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        """Return `num_samples` completions for each doc; lighteval has shuffled the docs."""
        rows: dict[tuple[str, str], list[Row]] = {}
        for row in self._answer():
            rows.setdefault((row["task"], row["question_id"]), []).append(row)
        return [self._response(doc, rows) for doc in docs]

    def _response(self, doc: Doc, rows: Mapping[tuple[str, str], list[Row]]) -> _Response:
        assert doc.specific is not None  # see _doc
        found = rows[doc.task_name.split("|")[0], doc.specific["question_id"]]
        if len(found) != doc.num_samples:
            raise RuntimeError(f"{doc.task_name}: {len(found)} completions, not {doc.num_samples}")
        return _Response(text=[row["completion"] for row in found], rows=found)

    def loglikelihood(self, docs: list[Doc]) -> list[ModelResponse]:
        raise NotImplementedError("our tasks are generative")

    loglikelihood_rolling = loglikelihood


class _Graded(SamplingMetric, SampleLevelComputation):
    """The graded rows of a question; `num_samples` becomes `Doc.num_samples`."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self._samples = samples

    def compute(  # type: ignore[override]
        self, doc: Doc, model_response: _Response, **_: Any
    ) -> list[Row]:
        return model_response.rows

    def num_samples(self) -> int:
        return self._samples


class _Score(CorpusLevelComputation):
    """Aggregates a task. lighteval keeps the values, `rows` also has their intervals."""

    def __init__(self, score: Score) -> None:
        self._score = score
        self.rows: list[Row] = []

    def compute_corpus(self, items: list[list[Row]]) -> dict[str, float]:
        self.rows = self._score([row for item in items for row in item])
        return {
            row["metric"]: math.nan if row["value"] is None else row["value"] for row in self.rows
        }


def _task(task: EvalTask, samples: int, score: _Score) -> LightevalTask:
    metric = CorpusLevelMetric(
        metric_name=METRIC,
        higher_is_better=True,
        category=SamplingMethod.GENERATIVE,
        sample_level_fn=_Graded(samples),
        corpus_level_fn=score,
    )
    config = LightevalTaskConfig(
        name=task.name,
        prompt_function=_doc,
        hf_repo="",
        hf_subset="",
        metrics=[metric],
        hf_avail_splits=[SPLIT],
        evaluation_splits=[SPLIT],
        few_shots_split=SPLIT,  # never used: zero shots
    )
    made = LightevalTask(config)
    made.dataset = {SPLIT: [{"question": question} for question in task.questions]}
    return made


def _doc(line: dict[str, Any], task_name: str) -> Doc:
    """Convert a question for lighteval; the prompt is built from the question, not from this."""
    question = line["question"]
    gold = question["answer"] or ""
    return Doc(query=question["question"], choices=[gold], gold_index=0, specific=dict(question))


def _full(name: str) -> str:
    """lighteval's name of a task, which includes its number of few-shot examples."""
    return f"{name}|0"
