"""The paper's benchmarks as the profiles sample them, from rows in the hub's schema to scores."""

from pathlib import Path
from typing import Any, get_args

import pytest

from rlt_core.config import EvaluationConfig, PromptPreset, ScratchModel, StageResources
from rlt_core.evaluation.benchmarks import BENCHMARKS, benchmark_task
from rlt_core.evaluation.run import ModelEvaluation
from rlt_core.models import new_model, save_model, tiny_tokenizer
from rlt_core.profiles.paper import EVALUATION
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from rlt_core.rows import read_rows
from rlt_core.stages import EvaluationStageConfig
from tasks.stages import evaluation
from tests.rlt_core.evaluation.conftest import COMMIT, ROWS, write_hub

FORMAT = load_format("tiny")
SHORT = EVALUATION.model_copy(update={"max_tokens": 12, "dtype": "float32", "temperature": 1.0})
COUNTS = {"aime24": 64, "math_500": 4, "gpqa_diamond": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact") / "model"
    tokenizer = tiny_tokenizer(FORMAT, max_positions=1024)
    config = ScratchModel(layers=1, width=16, heads=2, steps=0, seed=1, max_positions=1024)
    save_model(new_model(config, tokenizer), tokenizer, folder)
    return folder


def evaluate(model: Path, out: Path, config: EvaluationConfig) -> list[dict[str, Any]]:
    tasks = [benchmark_task(name, prompts=config.prompts) for name in config.tasks]
    with ModelEvaluation(
        model, tasks, config, format=FORMAT, key="0123456789abcdef", seed=0, model_key="m",
        resources=StageResources(tokens_per_batch=65536),
    ) as evaluation:  # fmt: skip
        progress = Progress()
        evaluation.run(lambda: evaluation.complete(evaluation.requests, progress), out, progress)
    return read_rows(out, "eval_samples")


def test_the_profiles_ask_as_often_as_the_docs_say() -> None:
    assert {task: EVALUATION.samples_of(task) for task in EVALUATION.tasks} == COUNTS
    assert set(COUNTS) == set(BENCHMARKS)


@pytest.mark.usefixtures("hub")
def test_the_stage_asks_with_the_configs_prompts() -> None:
    for prompts in get_args(PromptPreset):
        config = EvaluationStageConfig(
            evaluation=EVALUATION.model_copy(update={"prompts": prompts}),
            benchmarks=dict.fromkeys(EVALUATION.tasks, COMMIT),
            format=FORMAT,
            seed=0,
        )
        for name in EVALUATION.tasks:
            task = evaluation._task(None, name, config)  # type: ignore[arg-type]
            assert task == benchmark_task(name, prompts=prompts)
    assert EVALUATION.prompts == "skythought"


def test_many_completions_of_few_questions_are_scored(
    model: Path, hub: Path, tmp_path: Path
) -> None:
    rows = evaluate(model, tmp_path / "first", SHORT)
    asked = {name: len(ROWS[name]) for name in COUNTS}
    for task, n in COUNTS.items():
        of_task = [(row["question_id"], row["sample"]) for row in rows if row["task"] == task]
        assert of_task == [(f"{task}-{q:04d}", i) for q in range(asked[task]) for i in range(n)]
    drawn = [row["completion"] for row in rows if row["question_id"] == "aime24-0000"]
    assert len(set(drawn)) > 32, "each has a seed of its own"
    said = next(row for row in rows if row["task"] == "aime24" and row["extracted"])
    number = int(said["question_id"][-1])
    problems = [dict(row) for row in ROWS["aime24"]]
    problems[number]["answer"] = said["extracted"]
    write_hub(hub, {"aime24": problems})

    marked = evaluate(model, tmp_path / "second", SHORT)
    assert [row["completion"] for row in marked] == [row["completion"] for row in rows]
    right = sum(row["outcome"] == "correct" for row in marked if row["task"] == "aime24")
    assert right > 0
    scores = {row["task"]: row for row in read_rows(tmp_path / "second", "eval_scores")}
    assert {task: row["metric"] for task, row in scores.items()} == {
        task: f"avg@{n}" for task, n in COUNTS.items()
    }
    assert scores["aime24"]["value"] == pytest.approx(right / (2 * 64))
    assert scores["aime24"]["questions"] == 2 and scores["aime24"]["samples"] == 64
    assert scores["gpqa_diamond"]["questions"] == 12
