"""Benchmarks of the hub: prompts, right answers and samples, from rows in the hub's schema."""

import json
import random
from pathlib import Path
from typing import get_args

import pytest

from rlt_core.config import DataConfig, PromptPreset
from rlt_core.errors import UserError
from rlt_core.evaluation.benchmarks import BENCHMARKS, CHOICES_SEED, benchmark_task, own_task
from rlt_core.profiles.paper import EVALUATION
from rlt_core.prompts.format import load_format
from rlt_core.stages import EvaluationStageConfig
from tasks.stages import evaluation
from tests.hub_cache import COMMIT, ROWS
from tests.imports import imported

FORMAT = load_format("tiny")
COUNTS = {"aime24": 64, "math_500": 4, "gpqa_diamond": 8}


@pytest.mark.usefixtures("hub")
def test_the_preset_lighteval_asks_as_lighteval_does() -> None:
    from lighteval.tasks.tasks import aime, gpqa, math_500

    theirs = {
        "aime24": aime.aime24, "math_500": math_500.math_500,
        "gpqa_diamond": gpqa.gpqa_diamond_instruct,
    }  # fmt: skip
    assert theirs.keys() == BENCHMARKS.keys()
    for name, config in theirs.items():
        benchmark = BENCHMARKS[name]
        known = (config.hf_repo, config.hf_subset, config.evaluation_splits)
        assert known == (benchmark.repo, benchmark.subset, (benchmark.split,))
        random.seed(CHOICES_SEED)
        docs = [config.prompt_function(row, name) for row in ROWS[name]]
        questions = benchmark_task(name, prompts="lighteval").questions
        assert [row["question"] for row in questions] == [doc.query for doc in docs]
        if name != "math_500":  # whose gold is a whole solution there
            assert [[row["answer"]] for row in questions] == [doc.get_golds() for doc in docs]


@pytest.mark.usefixtures("hub")
def test_the_preset_skythought_boxes_the_answer() -> None:
    boxed = "Return your final response within \\boxed{}"
    for name in ("aime24", "math_500"):
        asked = [row["question"] for row in benchmark_task(name, prompts="skythought").questions]
        assert asked == [f"{boxed}. {row['problem']}" for row in ROWS[name]]
    first = benchmark_task("gpqa_diamond", prompts="skythought").questions[0]
    letters = ["A", "B", "C", "D"]
    wrong = iter(("w1", "w2", "w3"))
    choices = [f"{x}) {'right' if x == first['answer'] else next(wrong)}" for x in letters]
    assert first["question"] == (
        f"{boxed} and only include the letter choice (A, B, C, or D) as your final response. "
        f"Which, 0?\n{', '.join(choices)}"
    )


@pytest.mark.usefixtures("hub")
def test_the_gold_of_a_math_benchmark_is_its_answer_column() -> None:
    for prompts in get_args(PromptPreset):
        assert [row["answer"] for row in benchmark_task("aime24", prompts=prompts).questions] == [
            "42", "1",
        ]  # fmt: skip
        [half] = benchmark_task("math_500", max_questions=5, prompts=prompts).questions
        assert (half["answer"], half["grader"]) == ("\\frac{1}{2}", "math")
    assert len(benchmark_task("aime24", max_questions=1, revision=COMMIT).questions) == 1


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("prompts", get_args(PromptPreset))
def test_gpqas_choices_are_shuffled_once_and_for_all(prompts: PromptPreset) -> None:
    first, second = (benchmark_task("gpqa_diamond", prompts=prompts) for _ in range(2))
    assert first == second
    assert {row["answer"] for row in first.questions} == set("ABCD")
    for row in first.questions:
        assert f"{row['answer']}) right" in row["question"]


def test_a_benchmark_that_was_not_fetched_names_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in BENCHMARKS:
        with pytest.raises(UserError, match=f"{name}.*rlt fetch"):
            benchmark_task(name)
    with pytest.raises(UserError, match="gsm9k"):
        benchmark_task("gsm9k")


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


def test_equal_questions_of_a_users_file_are_asked_once_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [{"question": text, "answer": str(i)} for i, text in enumerate(("a?", "b?", "A?"))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = own_task("mine", DataConfig(source=str(file))).questions
    assert [(row["question"], row["answer"]) for row in asked] == [("a?", "0"), ("b?", "1")]
    assert "task mine: 1 of 3 rows repeat the question of an earlier one" in caplog.text


def test_benchmarks_are_read_without_lighteval(hub: Path) -> None:
    code = "from rlt_core.evaluation.benchmarks import benchmark_task as t; t('gpqa_diamond')"
    assert not imported(code) & {"lighteval", "torch"}
