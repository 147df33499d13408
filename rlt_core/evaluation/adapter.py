"""Everything that knows lighteval (pinned to 0.13.0). Importing this file takes it ten seconds.

Its `Pipeline` asks our engine through `greedy_until`, has our metric grade what came back, and
aggregates. What 0.13 needs for that, in the order in which it fails otherwise:

- `Registry` imports every built-in task, and `tasks/tiny_benchmarks.py` downloads a pickle while it
  is imported (`requests.exceptions.ConnectionError` offline). Custom tasks come only on top, so
  `_Pipeline` makes its tasks without a registry.
- A task loads its data through `datasets` and the hub: ours have their rows beforehand.
- A model needs a `_cache` with `_init_registry`.
- Importing it turns gradients off in the whole process.
"""

from __future__ import annotations

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

with torch.set_grad_enabled(torch.is_grad_enabled()):  # puts back what the import changes
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

METRIC = "graded"
SPLIT = "test"

Row = dict[str, Any]
Question = Mapping[str, Any]
"""A row of an `EvalTask`."""
Answer = Callable[[], Sequence[Row]]
"""Complete all questions: rows of `eval_samples` without grades."""
Grade = Callable[[Question, Sequence[str]], list[Row]]
"""Columns that grading fills, for each completion of a question."""
Score = Callable[[Sequence[Row]], list[Row]]
"""Graded rows of one task to its rows of `eval_scores`."""


@dataclass(frozen=True)
class Results:
    """What lighteval leaves."""

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
    grade: Grade,
    score: Score,
    out: Path,
) -> Results:
    """Generate, grade and score with lighteval's pipeline; `samples_of`: completions of each
    question of a task. Nothing is written to `out`, which lighteval wants to be told. Raises what
    the callbacks raise, KeyError for a question that was not answered."""
    scored = {task.name: _Scored(score) for task in tasks}
    made = [_task(task, _Graded(samples_of(task.name), grade), scored[task.name]) for task in tasks]
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
        scores=[row for one in scored.values() for row in one.rows],
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
        """Take the given tasks; lighteval's own method asks `Registry` (see the module's text)."""
        self.registry = None  # type: ignore[assignment]
        self.tasks_dict = {task.full_name: task for task in self._given}
        self.documents_dict = {name: task.get_docs() for name, task in self.tasks_dict.items()}
        docs = [doc for of_task in self.documents_dict.values() for doc in of_task]
        self.sampling_docs = defaultdict(list, {SamplingMethod.GENERATIVE: docs})
        self.evaluation_tracker.task_config_logger.log(self.tasks_dict)


@dataclass
class _Response(ModelResponse):
    """The completions of one question with their rows of `eval_samples`."""

    rows: list[Row] = field(default_factory=list)


class _Model(LightevalModel):
    """Our engine as lighteval's model."""

    def __init__(self, answer: Answer) -> None:
        self.config = ModelConfig(model_name="rlt")
        self._cache = SimpleNamespace(_init_registry=lambda _: None)  # the workspace resumes
        self._answer = answer

    @property
    def tokenizer(self) -> Any:
        raise NotImplementedError("prompts are built as token ids by rlt_core.prompts.renderer")

    @property
    def add_special_tokens(self) -> bool:
        return False

    @property
    def max_length(self) -> int:
        raise NotImplementedError("nothing is truncated")

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        """Generate `num_samples` completions for each doc; lighteval has shuffled the docs."""
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

    def loglikelihood_rolling(self, docs: list[Doc]) -> list[ModelResponse]:
        raise NotImplementedError("our tasks are generative")


# ---------------------------------------------------------------- the metric
class _Graded(SamplingMetric, SampleLevelComputation):
    """Grades the completions of a question."""

    def __init__(self, samples: int, grade: Grade) -> None:
        super().__init__()
        self._samples, self._grade = samples, grade

    def compute(  # type: ignore[override]
        self, doc: Doc, model_response: _Response, **_: Any
    ) -> list[Row]:
        """Rows of `eval_samples`."""
        assert doc.specific is not None
        grades = self._grade(doc.specific, model_response.final_text)
        return [row | one for row, one in zip(model_response.rows, grades, strict=True)]

    def num_samples(self) -> int:
        """Becomes `Doc.num_samples`."""
        return self._samples


class _Scored(CorpusLevelComputation):
    """Aggregates a task's graded completions; lighteval keeps the numbers, `rows` has their
    intervals, too."""

    def __init__(self, score: Score) -> None:
        self._score = score
        self.rows: list[Row] = []

    def compute_corpus(self, items: list[list[Row]]) -> dict[str, float]:
        """Metric -> value, NaN if nothing could be graded."""
        self.rows = self._score([row for item in items for row in item])
        return {
            row["metric"]: math.nan if row["value"] is None else row["value"] for row in self.rows
        }


# ---------------------------------------------------------------- the tasks
def _task(task: EvalTask, graded: _Graded, scored: _Scored) -> LightevalTask:
    metric = CorpusLevelMetric(
        metric_name=METRIC,
        higher_is_better=True,
        category=SamplingMethod.GENERATIVE,
        sample_level_fn=graded,
        corpus_level_fn=scored,
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
    """A question as lighteval sees it. Our prompt was built from the question, not from this."""
    question = line["question"]
    gold = question["answer"] or ""
    return Doc(query=question["question"], choices=[gold], gold_index=0, specific=dict(question))


def _full(name: str) -> str:
    """lighteval's name of a task: with its number of few-shot examples."""
    return f"{name}|0"
