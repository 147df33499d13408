"""The contract with lighteval: our questions, completions and grades go in, means come out."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlt_core.errors import UserError
from rlt_core.evaluation.adapter import Question, _benchmark_config, run_tasks
from rlt_core.evaluation.tasks import BENCHMARKS, EvalTask, benchmark_task
from tests.rlt_core.evaluation.conftest import COMMIT


def question(question_id: str, answer: str | None = "1") -> Question:
    return {
        "question_id": question_id,
        "question": f"What is {question_id}?",
        "answer": answer,
        "grader": "arithmetic",
        "metadata": None,
        "split": "test",
    }


def answered(task: EvalTask, outcomes: Sequence[str]) -> dict[tuple[str, str], list[Question]]:
    rows = [{"completion": f"{sample}", "outcome": one} for sample, one in enumerate(outcomes)]
    return {(task.name, q["question_id"]): rows for q in task.questions}


def test_every_task_has_its_mean_of_what_was_graded(tmp_path: Path) -> None:
    first, second, third = (
        EvalTask(name, [question(f"q{i}") for i in range(count)])
        for name, count in (("one", 40), ("two", 3), ("three", 2))
    )
    answers = answered(first, ["correct", "wrong", "unparsable", "correct"])
    answers |= answered(second, ["grader_failed"]) | answered(third, ["wrong"])
    answers["one", "q7"] = [{"completion": "", "outcome": "ungradable"}]
    answers["one", "q8"] = [{"completion": "", "outcome": "wrong"}]
    answers["three", "q1"] = answered(third, ["correct", "grader_failed"])["three", "q1"]
    means = run_tasks([first, second, third], answers, tmp_path)
    assert means["one"] == pytest.approx(38 * 0.5 / 39)
    assert math.isnan(means["two"]), "nothing could be graded"
    assert means["three"] == 0.5
    assert list(tmp_path.iterdir()) == []


def test_a_question_without_an_answer_is_not_passed_over(tmp_path: Path) -> None:
    task = EvalTask("one", [question("a"), question("b")])
    answers = answered(task, ["correct"])
    del answers["one", "b"]
    with pytest.raises(KeyError, match="b"):
        run_tasks([task], answers, tmp_path)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("a|b", [question("a")], "a name has"),
        ("a", [], "no questions"),
        ("a", [question("x"), question("x")], "question_id x occurs 2 times"),
        ("a", [dict(question("x"), grader="vibes")], "'vibes' is not one of"),
    ],
)
def test_a_bad_task_is_refused(name: str, rows: list[Question], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvalTask(name, rows)


# ---------------------------------------------------------------- benchmarks of the hub
@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_a_benchmark_is_lightevals(name: str) -> None:
    assert _benchmark_config(name).hf_repo == BENCHMARKS[name].repo


@pytest.mark.usefixtures("hub")
def test_benchmarks_have_lightevals_prompts_and_the_right_answers() -> None:
    aime = benchmark_task("aime24")
    assert [row["answer"] for row in aime.questions] == ["42", "1"]
    assert "Six times seven?" in aime.questions[0]["question"]
    assert "boxed" in aime.questions[0]["question"]
    [half] = benchmark_task("math_500", max_questions=5).questions
    assert (half["answer"], half["grader"]) == ("\\frac12", "math")
    assert len(benchmark_task("aime24", max_questions=1, revision=COMMIT).questions) == 1


@pytest.mark.usefixtures("hub")
def test_gpqas_choices_are_shuffled_once_and_for_all() -> None:
    first, second = benchmark_task("gpqa_diamond"), benchmark_task("gpqa_diamond")
    assert first == second
    assert len({row["answer"] for row in first.questions}) > 1
    for row in first.questions:
        assert f"\n{row['answer']}) right" in row["question"]


def test_a_benchmark_that_was_not_fetched_names_the_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in BENCHMARKS:
        with pytest.raises(UserError, match=f"{name}.*rlt fetch"):
            benchmark_task(name)
    with pytest.raises(UserError, match="gsm9k"):
        benchmark_task("gsm9k")


def test_importing_lighteval_leaves_gradients_on() -> None:
    import torch

    import rlt_core.evaluation.adapter  # noqa: F401

    assert torch.is_grad_enabled()
