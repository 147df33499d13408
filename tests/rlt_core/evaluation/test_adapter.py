"""The contract with lighteval: it gets graded completions and aggregates them."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rlt_core.errors import UserError
from rlt_core.evaluation.benchmarks import EvalTask
from rlt_core.evaluation.scores import score_rows

Row = dict[str, Any]


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


def evaluate(
    answers: Mapping[EvalTask, list[Row]], out: Path
) -> tuple[list[Row], dict[str, float]]:
    from rlt_core.evaluation.adapter import run_tasks  # it takes seconds, in one worker

    rows = [row | {"outcome": row["completion"]} for rows in answers.values() for row in rows]
    return run_tasks(list(answers), rows, scored, out)


class Task(EvalTask):
    __hash__ = object.__hash__


def test_lighteval_aggregates(tmp_path: Path) -> None:
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
    scores, metrics = evaluate(answers, tmp_path)
    assert metrics["one/avg@4"] == pytest.approx((39 * 0.5 + 0.25) / 40)
    assert metrics["two/avg@1"] != metrics["two/avg@1"], "nothing was gradable"
    assert metrics["three/avg@2"] == metrics["three/pass@1"] == 0.5
    assert [(row["task"], row["metric"]) for row in scores] == [
        (task, metric) for task, n in (("one", 4), ("two", 1), ("three", 2))
        for metric in (f"avg@{n}", "pass@1")
    ]  # fmt: skip
    values = {f"{row['task']}/{row['metric']}": row["value"] for row in scores}
    assert values["two/avg@1"] is None
    assert all(metrics[name] == value for name, value in values.items() if value)
    assert list(tmp_path.iterdir()) == []


def test_a_question_without_an_answer_is_not_passed_over(tmp_path: Path) -> None:
    task = Task("one", [question("a"), question("b")])
    rows = rows_of(task, ["correct", "wrong"])
    with pytest.raises(KeyError, match="b"):
        evaluate({task: rows[:2]}, tmp_path)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("a|b", [question("a")], "a name has"),
        ("a", [], "no questions"),
        ("a", [question("x"), question("x")], "question_id x occurs 2 times"),
    ],
)
def test_a_bad_task_is_refused(name: str, rows: list[Row], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvalTask(name, rows)


# ---------------------------------------------------------------- the import
def test_importing_lighteval_leaves_gradients_on() -> None:
    import rlt_core.evaluation.adapter  # noqa: F401

    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_importing_lighteval_leaves_gradients_off() -> None:
    code = (
        "import torch; torch.set_grad_enabled(False); import rlt_core.evaluation.adapter; "
        "assert not torch.is_grad_enabled()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
