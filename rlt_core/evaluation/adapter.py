"""Everything that knows lighteval (pinned to 0.13.0). Importing this file takes it ten seconds.

What stands in the way of `Pipeline(launcher_type=CUSTOM)` with a model of our own, in order:
the registry imports every built-in task, of which one downloads while it is imported, so ours
holds our tasks alone; a task loads its data through `datasets` and its cache, so ours hold rows;
the model needs a `_cache` that takes the registry; metrics grade in-process and keep no verdict a
completion, so the killable grader has graded before and ours reads its outcomes; `details` are kept
in memory and never saved.
"""

from __future__ import annotations

import importlib
import math
import os
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # lighteval asks git for its own commit

import torch
from datasets import load_dataset
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from lighteval.logging.evaluation_tracker import EvaluationTracker
from lighteval.metrics.metrics_sample import SampleLevelComputation
from lighteval.metrics.utils.metric_utils import SampleLevelMetric
from lighteval.models.abstract_model import LightevalModel, ModelConfig
from lighteval.models.model_output import ModelResponse
from lighteval.pipeline import ParallelismManager, Pipeline, PipelineParameters
from lighteval.tasks.lighteval_task import LightevalTask, LightevalTaskConfig
from lighteval.tasks.registry import Registry
from lighteval.tasks.requests import Doc, SamplingMethod

from rlt_core.errors import UserError
from rlt_core.evaluation.tasks import BENCHMARKS, EvalTask
from rlt_core.grading import UNGRADED, answer_of
from rlt_core.hub import cache_folder
from rlt_core.snapshots import snapshot

torch.set_grad_enabled(True)  # importing lighteval turns gradients off for the whole process

METRIC = "graded_correct"
SPLIT = "test"
CHOICES_SEED = 0
"""Of the order of GPQA's choices."""

Question = Mapping[str, Any]
"""A row of an `EvalTask`."""


Answers = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
"""(task name, question_id) -> rows of `eval_samples` by sample."""


@dataclass
class _Response(ModelResponse):
    """The completions of one question with their grades."""

    outcomes: list[str] = field(default_factory=list)


class _NoCache:
    """lighteval's cache of answers is not used: the workspace keeps them."""

    def _init_registry(self, registry: Registry) -> None:
        """Called by the pipeline."""


class _Model(LightevalModel):
    """A model that has answered before."""

    def __init__(self, answers: Answers) -> None:
        self.config = ModelConfig(model_name="rlt")
        self._cache = _NoCache()
        self._answers = answers

    @property
    def tokenizer(self) -> Any:
        raise NotImplementedError("prompts are built as token ids by rlt_core.prompts")

    @property
    def add_special_tokens(self) -> bool:
        return False

    @property
    def max_length(self) -> int:
        raise NotImplementedError("nothing is truncated")

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        """All completions, in the order of the docs (which lighteval has shuffled)."""
        return [self._response(doc) for doc in docs]

    def _response(self, doc: Doc) -> _Response:
        assert doc.specific is not None  # see _doc
        rows = self._answers[doc.task_name.split("|")[0], doc.specific["question_id"]]
        return _Response(
            text=[row["completion"] for row in rows], outcomes=[row["outcome"] for row in rows]
        )

    def loglikelihood(self, docs: list[Doc]) -> list[ModelResponse]:
        raise NotImplementedError("our tasks are generative")

    def loglikelihood_rolling(self, docs: list[Doc]) -> list[ModelResponse]:
        raise NotImplementedError("our tasks are generative")


class _Graded(SampleLevelComputation):
    """Share of a question's completions that are correct; NaN if none could be graded."""

    def compute(  # type: ignore[override]  # lighteval calls a batched metric like this
        self, docs: list[Doc], responses: list[_Response]
    ) -> list[float]:
        """One value a question."""
        return [_share_correct(response.outcomes) for response in responses]


def _share_correct(outcomes: Sequence[str]) -> float:
    marks = [outcome == "correct" for outcome in outcomes if outcome not in UNGRADED]
    return sum(marks) / len(marks) if marks else math.nan


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


class _RowsTask(LightevalTask):
    """A task whose data are rows in memory."""

    def __init__(self, config: LightevalTaskConfig, rows: Sequence[Question]) -> None:
        super().__init__(config)
        self._rows = rows

    @staticmethod
    def download_dataset_worker(task: LightevalTask) -> Any:
        """Called by the pipeline; nothing is downloaded."""
        assert isinstance(task, _RowsTask)
        return {SPLIT: [dict(row) for row in task._rows]}


class _RowsRegistry(Registry):
    """Knows given tasks, and imports none."""

    def __init__(self, tasks: Sequence[LightevalTask]) -> None:
        self._tasks = {task.full_name: task for task in tasks}

    def load_tasks(self) -> dict[str, LightevalTask]:
        """Called by the pipeline."""
        return self._tasks


def _doc(row: dict[str, Any], task_name: str) -> Doc:
    """A row as lighteval sees it. Our prompt was built from the question, not from this."""
    gold = row["answer"] or ""
    named = {"question_id": row["question_id"]}
    return Doc(query=row["question"], choices=[gold], gold_index=0, specific=named)


def run_tasks(tasks: Sequence[EvalTask], answers: Answers, out: Path) -> dict[str, float]:
    """Run tasks through lighteval's pipeline, each question answered and graded before; task name
    -> mean over its questions of the share of correct completions, NaN if none could be graded.
    Nothing is written to `out`, which lighteval wants to be told."""
    metric = SampleLevelMetric(
        metric_name=METRIC,
        higher_is_better=True,
        category=SamplingMethod.GENERATIVE,
        sample_level_fn=_Graded(),
        corpus_level_fn=_mean,
        batched_compute=True,
    )
    registry = _RowsRegistry([_task(task, metric) for task in tasks])
    with mock.patch("lighteval.pipeline.Registry", lambda **_: registry):
        pipeline = Pipeline(
            tasks=",".join(registry.load_tasks()),
            pipeline_parameters=PipelineParameters(
                launcher_type=ParallelismManager.CUSTOM,
                remove_reasoning_tags=False,
                bootstrap_iters=0,
            ),
            evaluation_tracker=EvaluationTracker(output_dir=str(out), save_details=False),
            model=_Model(answers),
        )
    pipeline.evaluate()
    results = pipeline.evaluation_tracker.metrics_logger.metric_aggregated
    return {task.name: results[f"{task.name}|0"][METRIC] for task in tasks}


def _task(task: EvalTask, metric: SampleLevelMetric) -> LightevalTask:
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
    return _RowsTask(config, task.questions)


# ---------------------------------------------------------------- benchmarks of the hub
def benchmark_questions(name: str, revision: str | None) -> list[dict[str, Any]]:
    """Questions with lighteval's prompts and right answers. Of a commit, what this machine lacks is
    downloaded. Raises UserError if it cannot be had."""
    docs = _benchmark_docs(_benchmark_config(name), _folder(name, revision))
    return [_question(name, index, doc) for index, doc in enumerate(docs)]


def _folder(name: str, revision: str | None) -> Path:
    benchmark = BENCHMARKS[name]
    try:
        if revision:
            return snapshot(benchmark.repo, revision, "dataset", ["*"])
        found = snapshot_download(
            benchmark.repo, repo_type="dataset", cache_dir=cache_folder(), local_files_only=True
        )
        return Path(found)
    except (LocalEntryNotFoundError, UserError) as error:
        terms = " (gated: accept its terms on the hub and set HF_TOKEN)" if benchmark.gated else ""
        why = f"; {error}" if revision else ""
        raise UserError(
            f"task {name}: data set {benchmark.repo} is not on this machine{terms}; "
            f"run `rlt fetch` with this profile once, with network{why}"
        ) from None


def _benchmark_config(name: str) -> LightevalTaskConfig:
    module = importlib.import_module(f"lighteval.tasks.tasks.{BENCHMARKS[name].module}")
    return replace(getattr(module, BENCHMARKS[name].config), few_shots_split=SPLIT)


def _benchmark_docs(config: LightevalTaskConfig, folder: Path) -> list[Doc]:
    """Docs in the data set's order; `random`, which shuffles choices, is seeded and put back."""
    task = LightevalTask(config)
    state = random.getstate()
    with tempfile.TemporaryDirectory() as cache:
        task.dataset = load_dataset(str(folder), config.hf_subset, cache_dir=cache)
        random.seed(CHOICES_SEED)
        try:
            return task.eval_docs()
        finally:
            random.setstate(state)


def _question(name: str, index: int, doc: Doc) -> dict[str, Any]:
    [gold] = doc.get_golds()
    return {
        "question_id": f"{name}-{index:04d}",
        "question": doc.query,
        "answer": answer_of(gold) if BENCHMARKS[name].grader == "math" else gold,
        "grader": BENCHMARKS[name].grader,
        "metadata": None,
    }
