"""The contract with lighteval: our questions go in, our completions and grades come out."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlt_core.errors import UserError
from rlt_core.evaluation.adapter import Question, Response, _benchmark_config, run_tasks
from rlt_core.evaluation.tasks import BENCHMARKS, EvalTask, benchmark_task
from rlt_core.grading import Grade

COMMIT = "0" * 40


def question(question_id: str, answer: str | None = "1") -> Question:
    return {
        "question_id": question_id,
        "question": f"What is {question_id}?",
        "answer": answer,
        "grader": "arithmetic",
        "metadata": None,
        "split": "test",
    }


def test_completions_and_grades_come_back_in_the_tasks_order(tmp_path: Path) -> None:
    tasks = [
        EvalTask("one", [question(f"q{i}") for i in range(40)]),
        EvalTask("two", [question(f"q{i}", None) for i in range(3)]),
    ]

    def answer(asked: Sequence[tuple[str, Question]]) -> list[Response]:
        assert sorted((task, q["question_id"]) for task, q in asked) == sorted(
            (task.name, q["question_id"]) for task in tasks for q in task.questions
        )
        return [
            Response(
                text=[f"{task} {q['question_id']} {sample}" for sample in range(2)],
                output_tokens=[[1], [2]],
                finish_reasons=["stop", "length"],
            )
            for task, q in asked
        ]

    def judge(questions: Sequence[Question], responses: Sequence[Response]) -> list[list[Grade]]:
        return [[Grade("correct"), Grade("wrong")] for _ in responses]

    results = run_tasks(tasks, answer, judge, tmp_path)
    assert [name for name in results] == ["one", "two"]
    for task in tasks:
        assert [q["question_id"] for q, _ in results[task.name]] == [
            q["question_id"] for q in task.questions
        ]
        for q, response in results[task.name]:
            assert response.text[1] == f"{task.name} {q['question_id']} 1"
            assert [grade.outcome for grade in response.grades] == ["correct", "wrong"]
            assert q["metadata"] is None
    assert list(tmp_path.iterdir()) == []


def test_lighteval_costs_little_a_run(tmp_path: Path) -> None:
    tasks = [EvalTask("one", [question(f"q{i}") for i in range(400)])]
    start = time.monotonic()
    run_tasks(
        tasks,
        lambda asked: [Response(text=["1"], output_tokens=[[1]]) for _ in asked],
        lambda questions, responses: [[Grade("correct")] for _ in responses],
        tmp_path,
    )
    assert time.monotonic() - start < 3  # 0.1 s on an idle machine


def test_an_exception_of_the_model_is_not_swallowed(tmp_path: Path) -> None:
    def answer(asked: Sequence[tuple[str, Question]]) -> list[Response]:
        raise InterruptedError("mine")

    with pytest.raises(InterruptedError, match="mine"):
        run_tasks([EvalTask("one", [question("a")])], answer, lambda q, r: [], tmp_path)


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
ROWS = {
    "aime24": [{"problem": "Six times seven?", "answer": "42"}, {"problem": "1?", "answer": "1"}],
    "math_500": [{"problem": "Half?", "solution": "It is $\\boxed{\\frac12}$.", "answer": "x"}],
    "gpqa_diamond": [
        {
            "Question": f"Which, {i}?",
            "Correct Answer": "right",
            "Incorrect Answer 1": "w1",
            "Incorrect Answer 2": "w2",
            "Incorrect Answer 3": "w3",
        }
        for i in range(12)
    ],
}
SPLITS = {"aime24": "train", "math_500": "test", "gpqa_diamond": "train"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache, laid out as `snapshot_download` leaves it, with little data sets."""
    for name, rows in ROWS.items():
        repo = tmp_path / f"datasets--{BENCHMARKS[name].repo.replace('/', '--')}"
        snapshot = repo / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(COMMIT)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (snapshot / "rows.jsonl").write_text(text)
        subset = {"gpqa_diamond": "gpqa_diamond"}.get(name, "default")
        (snapshot / "README.md").write_text(
            f"---\nconfigs:\n- config_name: {subset}\n  data_files:\n"
            f"  - split: {SPLITS[name]}\n    path: rows.jsonl\n---\n"
        )
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    return tmp_path


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
