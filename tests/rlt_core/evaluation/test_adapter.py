"""The contract with lighteval: it asks for completions and aggregates them."""

import ast
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

import rlt_core
from rlt_core.config import PromptPreset
from rlt_core.errors import UserError
from rlt_core.evaluation.adapter import Results, Row, run_tasks
from rlt_core.evaluation.benchmarks import BENCHMARKS, CHOICES_SEED, EvalTask, benchmark_task
from rlt_core.evaluation.scores import score_rows
from tests.rlt_core.evaluation.conftest import COMMIT, ROWS


def question(question_id: str, answer: str | None = "1") -> Row:
    return {
        "question_id": question_id,
        "question": f"What is {question_id}?",
        "answer": answer,
        "grader": "arithmetic",
        "metadata": None,
        "split": "test",
    }


def rows_of(task: EvalTask, texts: Sequence[str]) -> list[Row]:
    common = {"task": task.name, "seed": 0, "model": "m"}
    return [
        common | {"question_id": q["question_id"], "sample": sample, "completion": text}
        for q in task.questions
        for sample, text in enumerate(texts)
    ]


def scored(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    return score_rows(rows, (1,), "base")


def evaluate(answers: Mapping[EvalTask, list[Row]], out: Path, n: int = 0) -> Results:
    tasks = list(answers)
    of_task = {task.name: n or len(rows) // len(task.questions) for task, rows in answers.items()}
    rows = [row | {"outcome": row["completion"]} for rows in answers.values() for row in rows]
    return run_tasks(tasks, of_task.__getitem__, lambda: rows, scored, out)


class Task(EvalTask):
    __hash__ = object.__hash__


def test_lighteval_asks_and_aggregates(tmp_path: Path) -> None:
    first, second, third = (
        Task(name, [question(f"q{i}") for i in range(count)])
        for name, count in (("one", 40), ("two", 3), ("three", 2))
    )
    answers = {
        first: rows_of(first, ["correct", "wrong", "unparsable", "correct"]),
        second: rows_of(second, ["ungradable"]),
        third: rows_of(third, ["wrong", "correct"]),
    }
    answers[first][4 * 7]["completion"] = "wrong"
    results = evaluate(answers, tmp_path)
    asked = [row for rows in answers.values() for row in rows]
    assert [{**row, "outcome": row["completion"]} for row in asked] == results.samples
    assert results.metrics["one/avg@4"] == pytest.approx((39 * 0.5 + 0.25) / 40)
    assert results.metrics["two/avg@1"] != results.metrics["two/avg@1"], "nothing was gradable"
    assert results.metrics["three/avg@2"] == results.metrics["three/pass@1"] == 0.5
    assert [(row["task"], row["metric"]) for row in results.scores] == [
        (task, metric) for task, n in (("one", 4), ("two", 1), ("three", 2))
        for metric in (f"avg@{n}", "pass@1")
    ]  # fmt: skip
    values = {f"{row['task']}/{row['metric']}": row["value"] for row in results.scores}
    assert values["two/avg@1"] is None
    assert all(results.metrics[name] == value for name, value in values.items() if value)
    assert list(tmp_path.iterdir()) == []


def test_a_question_without_an_answer_is_not_passed_over(tmp_path: Path) -> None:
    task = Task("one", [question("a"), question("b")])
    rows = rows_of(task, ["correct", "wrong"])
    with pytest.raises(KeyError, match="b"):
        evaluate({task: rows[:2]}, tmp_path, n=2)
    with pytest.raises(RuntimeError, match="1 completions, not 2"):
        evaluate({task: rows[:3]}, tmp_path, n=2)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("a|b", [question("a")], "a name has"),
        ("a", [], "no questions"),
        ("a", [question("x"), question("x")], "question_id x occurs 2 times"),
        ("a", [dict(question("x"), grader="vibes")], "'vibes' is not one of"),
    ],
)
def test_a_bad_task_is_refused(name: str, rows: list[Row], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvalTask(name, rows)


# ---------------------------------------------------------------- benchmarks of the hub
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


# ---------------------------------------------------------------- the import
def test_importing_lighteval_leaves_gradients_as_they_were() -> None:
    import torch

    assert torch.is_grad_enabled(), "after the import above"
    code = (
        "import torch; torch.set_grad_enabled(False); import rlt_core.evaluation.adapter; "
        "assert not torch.is_grad_enabled()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_benchmarks_are_read_without_lighteval(hub: Path) -> None:
    code = (
        "import sys; from rlt_core.evaluation.benchmarks import benchmark_task; "
        "benchmark_task('gpqa_diamond'); assert 'lighteval' not in sys.modules; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_product_replaces_nothing_at_run_time() -> None:
    root = Path(rlt_core.__file__).parents[1]
    for path in [p for top in ("rlt_core", "tasks", "flows") for p in (root / top).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith(("unittest", "pytest")) for name in names), path
