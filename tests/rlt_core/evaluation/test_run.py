"""An evaluation from a model folder to its tables, with a tiny random model."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlt_core.config import (
    BudgetForcing,
    EvaluationConfig,
    Sampling,
    ScratchModel,
    StageResources,
)
from rlt_core.errors import Stopped
from rlt_core.evaluation.benchmarks import EvalTask
from rlt_core.evaluation.run import ModelEvaluation, given_solution
from rlt_core.generation import open_engine, sample_seed
from rlt_core.grading import UNGRADED, GradeItem
from rlt_core.grading.grade import grade
from rlt_core.models import load_tokenizer, new_model, save_model, tiny_tokenizer
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.rows import read_rows
from rlt_core.store import Store, Workspace
from tasks.shards import LongWork
from tasks.stages.evaluation import examine

FORMAT = load_format("tiny")
CONFIG = EvaluationConfig(n=3, temperature=1.0, max_tokens=24, pass_at=(1, 2))
RESOURCES = StageResources(tokens_per_batch=2048)
KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact") / "model"
    tokenizer = tiny_tokenizer(FORMAT)
    config = ScratchModel(layers=1, width=32, heads=2, steps=0, seed=1)
    save_model(new_model(config, tokenizer), tokenizer, folder)
    return folder


def questions(count: int, answers: dict[str, str | None] | None = None) -> list[dict[str, Any]]:
    return [
        {
            "question_id": f"q{i}",
            "question": f"{i}+{i}?",
            "answer": (answers or {}).get(f"q{i}", str(2 * i)),
            "grader": "arithmetic",
            "metadata": None,
        }
        for i in range(count)
    ]


def evaluation(
    model: Path, tasks: Sequence[EvalTask], config: EvaluationConfig = CONFIG
) -> ModelEvaluation:
    return ModelEvaluation(
        model,
        tasks,
        config,
        format=FORMAT,
        key=KEY,
        seed=7,
        model_key="feedfacefeedface",
        label="base",
        resources=RESOURCES,
    )


def evaluate(
    model: Path,
    tasks: Sequence[EvalTask],
    folder: Path,
    config: EvaluationConfig = CONFIG,
    progress: Progress | None = None,
    shard_questions: int = 4,
) -> dict[str, float]:
    work = LongWork(folder / "out", workspace(folder), progress or Progress())
    return examine(work, evaluation(model, tasks, config), shard_questions)


def workspace(folder: Path) -> Workspace:
    return Store(str(folder / "store")).workspace(KEY)


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


def test_rows_say_what_the_model_wrote_and_what_it_is_worth(model: Path, tmp_path: Path) -> None:
    tasks = [EvalTask("test", questions(10)), EvalTask("other", questions(2, {"q1": None}))]
    metrics = evaluate(model, tasks, tmp_path)
    rows = read_rows(tmp_path / "out", "eval_samples")
    assert [(r["task"], r["question_id"], r["sample"]) for r in rows] == [
        (task.name, q["question_id"], sample)
        for task in tasks
        for q in task.questions
        for sample in range(3)
    ]
    renderer = Renderer(FORMAT, load_tokenizer(model))
    with open_engine(model, "float32", RESOURCES) as engine:
        for row in rows:
            [[alone]] = engine.generate(
                [renderer.student_prompt(row["question"])],
                Sampling(temperature=1.0, max_tokens=24),
                [[sample_seed(KEY, row["question_id"], row["sample"])]],
                renderer.stop_ids,
            )
            assert row["completion"] == renderer.decode(alone.ids)
            assert row["finish_reason"] == alone.finish_reason
            assert row["completion_tokens"] == len(alone.ids)
            solution = given_solution(renderer, row["completion"])
            verdict = grade(GradeItem(solution, row["answer"], "arithmetic"))
            assert (row["outcome"], row["extracted"]) == (verdict.outcome, verdict.extracted)
            assert (row["seed"], row["model"]) == (7, "feedfacefeedface")
    scores = read_rows(tmp_path / "out", "eval_scores")
    assert [(r["task"], r["metric"], r["ungraded"]) for r in scores] == [
        ("test", "avg@3", 0), ("test", "pass@1", 0), ("test", "pass@2", 0),
        ("other", "avg@3", 3), ("other", "pass@1", 3), ("other", "pass@2", 3),
    ]  # fmt: skip
    assert {r["label"] for r in scores} == {"base"}
    assert metrics["test/avg@3"] == scores[0]["value"]
    assert metrics["other/ungraded"] == 3


def test_a_right_answer_that_does_not_grade_itself_is_listed_and_not_graded(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = EvalTask("test", questions(4, {"q1": "no number"}))
    metrics = evaluate(model, [task], tmp_path)
    assert (metrics["test/ungradable"], metrics["test/ungraded"]) == (1, 3)
    assert metrics["test/grader_failed"] == 0
    outcomes = {
        (r["question_id"], r["outcome"]) for r in read_rows(tmp_path / "out", "eval_samples")
    }
    assert ("q1", "ungradable") in outcomes and ("q2", "ungradable") not in outcomes
    assert "question q1: 'no number'" in caplog.text


def test_right_answers_are_found_right(model: Path, tmp_path: Path) -> None:
    evaluate(model, [EvalTask("test", questions(40))], tmp_path / "first")
    said = {
        row["question_id"]: row["extracted"]
        for row in read_rows(tmp_path / "first" / "out", "eval_samples")
        if row["extracted"] is not None
    }
    assert said  # a random model of characters writes a number now and then
    task = EvalTask("test", questions(40, said))
    metrics = evaluate(model, [task], tmp_path / "second")
    rows = read_rows(tmp_path / "second" / "out", "eval_samples")
    right = {row["question_id"] for row in rows if row["outcome"] == "correct"}
    assert right >= set(said)
    correct = sum(row["outcome"] == "correct" for row in rows)
    assert metrics["test/avg@3"] == pytest.approx(correct / len(rows))


def test_a_stopped_evaluation_goes_on_and_ends_the_same(model: Path, tmp_path: Path) -> None:
    tasks = [EvalTask("test", questions(10)), EvalTask("other", questions(3))]
    evaluate(model, tasks, tmp_path / "whole")
    assert len(workspace(tmp_path / "whole").parts("shards")) == 4
    for shards in range(4):

        def stop(broken: Path = tmp_path / "broken", enough: int = shards) -> bool:
            return len(workspace(broken).parts("shards")) >= enough

        with pytest.raises(Stopped):
            evaluate(model, tasks, tmp_path / "broken", progress=Progress(should_stop=stop))
        assert not (tmp_path / "broken" / "out").exists()
    before = workspace(tmp_path / "broken").parts("shards")
    evaluate(model, tasks, tmp_path / "broken")
    assert workspace(tmp_path / "broken").parts("shards")[:3] == before
    assert tables(tmp_path / "broken") == tables(tmp_path / "whole")


def test_what_was_answered_is_not_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its last shard, while it was graded, or while lighteval scored."""
    tasks = [EvalTask("test", questions(10))]
    evaluate(model, tasks, tmp_path)
    whole = tables(tmp_path)
    shutil.rmtree(tmp_path / "out")

    def never(*_: object) -> None:
        raise AssertionError("a second time")

    monkeypatch.setattr(ModelEvaluation, "_engine", property(never))
    looks = iter([False] * 4)
    stopping = Progress(should_stop=lambda: next(looks, True))
    with pytest.raises(Stopped):
        evaluate(model, tasks, tmp_path, progress=stopping)
    assert next(looks, None) is None and tables(tmp_path) == {}
    evaluate(model, tasks, tmp_path)
    assert tables(tmp_path) == whole


def test_a_completion_that_hangs_the_grader_costs_itself_alone(model: Path, tmp_path: Path) -> None:
    rows = [question | {"grader": "math"} for question in questions(3, {"q0": "4", "q1": "4"})]
    config = CONFIG.model_copy(update={"n": 1, "pass_at": (), "grading_timeout_s": 2.0})
    with evaluation(model, [EvalTask("test", rows)], config) as one:
        texts = [r"It is \boxed{4}.", r"\boxed{9^{9^{9^{9}}}}", r"\boxed{5}, no, \boxed{4}"]

        def answer() -> list[dict[str, Any]]:
            completed = one.complete(one.requests, Progress())
            return [row | {"completion": text} for row, text in zip(completed, texts, strict=True)]

        one.run(answer, tmp_path, Progress())
    samples = read_rows(tmp_path, "eval_samples")
    assert [row["completion"] for row in samples] == texts
    assert [row["outcome"] == "correct" for row in samples] == [True, False, True]


@pytest.mark.parametrize("shard_questions", [1, 5, 100])
def test_a_task_has_as_many_completions_as_its_samples_say(
    model: Path, tmp_path: Path, shard_questions: int
) -> None:
    tasks = [EvalTask(name, questions(3)) for name in ("few", "many", "odd")]
    config = EvaluationConfig(
        tasks=("few", "many", "odd"), n=2, samples={"many": 34, "odd": 5}, pass_at=(2,),
        temperature=1.0, max_tokens=12,
    )  # fmt: skip
    metrics = evaluate(model, tasks, tmp_path, config, shard_questions=shard_questions)
    rows = read_rows(tmp_path / "out", "eval_samples")
    counts = {"few": 2, "many": 34, "odd": 5}
    assert [(r["task"], r["question_id"], r["sample"]) for r in rows] == [
        (task.name, q["question_id"], sample)
        for task in tasks
        for q in task.questions
        for sample in range(counts[task.name])
    ]
    by_seed = {(r["question_id"], r["sample"]): r["completion"] for r in rows}
    assert all(r["completion"] == by_seed[r["question_id"], r["sample"]] for r in rows)
    scores = {(r["task"], r["metric"]): r for r in read_rows(tmp_path / "out", "eval_scores")}
    assert list(scores) == [(t, m) for t, n in counts.items() for m in (f"avg@{n}", "pass@2")]
    assert all(row["samples"] == counts[task] for (task, _), row in scores.items())
    assert {f"{task}/avg@{n}" for task, n in counts.items()} <= set(metrics)
    requests = evaluation(model, tasks, config).requests
    assert {len(request.samples) for request in requests} == {1, 2}
    shards = len(workspace(tmp_path).parts("shards"))
    assert shards == math.ceil(len(requests) / shard_questions)


def test_a_prompt_without_room_in_the_context_is_counted(model: Path, tmp_path: Path) -> None:
    """The model has 512 positions; a completion ends with them."""
    long = [
        q | {"question": "1" * length}
        for q, length in zip(questions(3), (600, 470, 9), strict=True)
    ]
    budget = BudgetForcing(max_thinking_tokens=80, continuations=3, continuation="W" * 40)
    for name, config in (
        ("free", CONFIG.model_copy(update={"max_tokens": 120})),
        ("forced", CONFIG.model_copy(update={"max_tokens": 120, "budget": budget})),
    ):
        metrics = evaluate(model, [EvalTask("test", long)], tmp_path / name, config)
        rows = read_rows(tmp_path / name / "out", "eval_samples")
        assert metrics["test/too_long"] == 3 and metrics["test/ungraded"] == 0
        assert {row["question_id"] for row in rows} == {"q0", "q1", "q2"}
        for row in rows:
            if row["question_id"] == "q0":
                assert (row["finish_reason"], row["completion_tokens"]) == ("too_long", 0)
                assert (row["completion"], row["outcome"]) == ("", "unparsable")
            elif row["question_id"] == "q1":
                prompt = Renderer(FORMAT, load_tokenizer(model)).student_prompt(row["question"])
                assert 0 < row["completion_tokens"] <= 512 - len(prompt) < 60
                assert row["finish_reason"] in ("stop", "length")
        scores = read_rows(tmp_path / name / "out", "eval_scores")
        assert {row["questions"] for row in scores} == {3}, "it counts as wrong"


def test_two_runs_write_the_same_bytes_and_progress_counts_shards(
    model: Path, tmp_path: Path
) -> None:
    seen: list[float] = []
    progress = Progress(lambda done, total, _: seen.append(done / total))
    config = CONFIG.model_copy(update={"max_questions": 6})
    for name in ("one", "two"):
        task = EvalTask("test", questions(8))
        evaluate(model, [task], tmp_path / name, config, progress=progress)
    assert tables(tmp_path / "one") == tables(tmp_path / "two")
    half = seen[: len(seen) // 2]
    assert half == sorted(half) == seen[len(half) :] and len(half) > 1 and half[-1] == 1
    rows = read_rows(tmp_path / "one" / "out", "eval_samples")
    assert {row["question_id"] for row in rows} == {f"q{i}" for i in range(6)}


def test_a_completion_without_the_formats_tags_is_its_own_solution() -> None:
    renderer = Renderer(FORMAT, tiny_tokenizer(FORMAT))
    thought = f"{FORMAT.thought_open}2+2{FORMAT.thought_close}"
    solution = f"{FORMAT.solution_open}4{FORMAT.solution_close}"
    assert given_solution(renderer, thought + solution) == "4"
    assert given_solution(renderer, "It is 4.") == "It is 4."
    for written in (thought, f"2+2{FORMAT.thought_close}"):  # the template may open the thought
        assert given_solution(renderer, f"{written}\nIt is 4.") == "\nIt is 4."
    assert given_solution(renderer, f"{FORMAT.thought_open}2+2 is 4, no, 5") is None
    assert given_solution(renderer, f"{thought}{FORMAT.solution_open}4") is None


def test_countdown_needs_only_its_metadata(model: Path, tmp_path: Path) -> None:
    metadata = json.dumps({"numbers": [1, 2], "target": 3})
    rows = [q | {"grader": "countdown", "answer": None, "metadata": metadata} for q in questions(2)]
    evaluate(model, [EvalTask("countdown", rows)], tmp_path)
    outcomes = {row["outcome"] for row in read_rows(tmp_path / "out", "eval_samples")}
    assert not outcomes & set(UNGRADED)
