"""Generated questions: right, distinct, seeded, disjoint, and held out where they must be."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rlt_core.config import DataConfig
from rlt_core.data.dedup import problem_of, require_disjoint
from rlt_core.data.generators import arithmetic
from rlt_core.data.generators.countdown import (
    countdown_rows,
    small_countdown_rows,
)
from rlt_core.data.generators.running_totals import Problem, running_total_rows, trace_of
from rlt_core.data.prepare import prepare_questions
from rlt_core.errors import UserError
from rlt_core.grading import GradeItem
from rlt_core.grading.grade import grade
from rlt_core.progress import Progress
from rlt_core.prompts.renderer import IGNORED
from rlt_core.rows import read_rows
from tests.rlt_core.data.prepared import RENDERER

STEP = re.compile(r"(\d+)\+(\d)=(\d+)")
Row = dict[str, Any]


def outcome(row: Row) -> str:
    item = GradeItem(row["solution"], row["answer"], row["grader"], row["metadata"])
    return grade(item).outcome


def prepared(data: DataConfig, out: Path, tested: list[Row] | None = None) -> tuple[list[Row], Row]:
    metrics = prepare_questions(data, RENDERER, out, Progress(), {}, tested or [])
    return read_rows(out, "questions"), metrics


# ---------------------------------------------------------------- arithmetic
def wrong_steps(trace: str) -> int:
    return sum(int(a) + int(b) != int(c) for a, b, c in STEP.findall(trace))


def test_solutions_are_true_and_questions_differ_in_more_than_order() -> None:
    rows = arithmetic.arithmetic_rows(500, seed=3)
    assert len({arithmetic.operands_of(row.question) for row in rows}) == 500
    assert all(sum(map(int, row.question.split("+"))) == int(row.solution) for row in rows)
    assert rows == arithmetic.arithmetic_rows(500, seed=3)
    assert rows != arithmetic.arithmetic_rows(500, seed=4)


def test_a_right_trace_ends_at_the_sum_and_errors_are_off_by_one() -> None:
    rng = Random(0)
    for _ in range(300):
        operands = tuple(rng.randint(10, 99) for _ in range(3))
        right = arithmetic.trace_of(operands, 0.0, rng)
        assert wrong_steps(right) == 0 and right.split(";")[-1] == str(sum(operands))
        steps = STEP.findall(arithmetic.trace_of(operands, 0.5, rng))
        assert steps
        for a, b, c in steps:
            assert abs(int(a) + int(b) - int(c)) <= 1


def test_traces_are_of_every_quality() -> None:
    traces = [row.trace or "" for row in arithmetic.arithmetic_rows(1000, seed=0)]
    errors = [wrong_steps(trace) for trace in traces if STEP.search(trace)]
    assert {0, 1, 2, 3} <= set(errors)
    terse = sum(not STEP.search(trace) for trace in traces)
    assert 30 < terse < 70, "one trace in twenty is terse"


def test_documents_stay_clear_of_held_out_questions_in_any_order() -> None:
    documents = list(arithmetic.base_documents(2000, 0, RENDERER, held_out=["What is 2?"]))
    asked = [q for q in map(_question, documents) if q]
    assert len(asked) > 400
    reordered = ["+".join(reversed(question.split("+"))) for question in asked]
    clear = arithmetic.base_documents(2000, 0, RENDERER, held_out=reordered)
    later = {arithmetic.operands_of(q) for q in map(_question, clear) if q}
    assert not later & {arithmetic.operands_of(question) for question in asked}


def _question(document: arithmetic.Row) -> str | None:
    assert IGNORED not in document.labels and document.labels == document.input_ids
    assert document.input_ids[-1] == RENDERER.end_of_turn
    found = re.search(r"user\n(\d+\+\d+\+\d+)<", RENDERER.tokenizer.decode(document.input_ids))
    return found and found[1]


def test_s1_traces_are_right_and_check_themselves() -> None:
    plain = [row.trace or "" for row in arithmetic.arithmetic_rows(50, 0)]
    rows = arithmetic.arithmetic_rows(50, 0, "s1")
    for row in rows:
        right, left, total, *check = (row.trace or "").split(";")
        assert wrong_steps(right) == wrong_steps(left) == 0
        assert total == row.solution and check[-1] == row.solution and len(check) == 3
    assert sum(len(row.trace or "") for row in rows) > sum(map(len, plain))


def test_sky_t1_traces_arrive_and_keep_some_wrong_steps() -> None:
    rows = arithmetic.arithmetic_rows(400, 0, "sky-t1")
    assert all((row.trace or "").endswith(f";{row.solution}") for row in rows)
    assert all(len((row.trace or "").split(";")) == 3 for row in rows), "one style"
    wrong = sum(wrong_steps(row.trace or "") > 0 for row in rows)
    assert 0 < wrong < 200, "errors that cancel each other are not seen"


@pytest.mark.parametrize("manner", ["s1", "sky-t1"])
def test_other_data_sets_have_none_of_the_test_in_any_order(tmp_path: Path, manner: str) -> None:
    data = DataConfig(source=f"arithmetic-{manner}", n_train=60, n_validation=0, n_test=0)
    free, _ = prepared(data, tmp_path / "free")
    taken = [{**row, "question": "+".join(row["question"].split("+")[::-1]), "split": "test"}
             for row in free[:25]]  # fmt: skip
    kept, metrics = prepared(data, tmp_path / "kept", taken)
    assert len(kept) == 60 and metrics["problems"] == 60
    problems = {arithmetic.operands_of(row["question"]) for row in kept}
    assert not problems & {arithmetic.operands_of(row["question"]) for row in taken}
    assert {row["reason"] for row in read_rows(tmp_path / "kept", "dropped")} == {"overlap"}


# ---------------------------------------------------------------- countdown
def test_countdown_problems_are_solved_by_their_solutions() -> None:
    first, other = (countdown_rows(30, seed) for seed in (0, 7))
    assert first == countdown_rows(30, 0)
    assert len({row.question for row in (*first, *other)}) == 60
    for row in first + other:
        numbers = json.loads(row.metadata or "")["numbers"]
        assert len(numbers) in (3, 4) and all(str(n) in row.question for n in numbers)
        assert outcome(asdict(row)) == "correct"


def test_small_problems_are_solved_by_their_solutions() -> None:
    rows = small_countdown_rows(500, 1)
    assert {outcome(asdict(row)) for row in rows} == {"correct"}
    problems = set()
    for row in rows:
        asked = json.loads(row.metadata or "")
        numbers, _, target = row.question.partition(">")
        assert sorted(map(int, numbers.split(","))) == asked["numbers"]
        assert row.answer == target and int(target) == asked["target"] >= 0
        assert row.solution.replace("-", "+").split("+") == numbers.split(",")
        problems.add((*asked["numbers"], asked["target"]))
    assert len(problems) == 500
    assert rows == small_countdown_rows(500, 1) != small_countdown_rows(500, 2)


def test_more_small_problems_than_there_are() -> None:
    with pytest.raises(UserError, match=r"countdown-small has \d+ problems"):
        small_countdown_rows(1_000_000, 0)


@pytest.mark.parametrize(
    ("source", "n_train", "n_test", "seed"),
    [
        ("countdown", 150, 50, 60),  # the generator's problem 147 is its problem 68, reordered
        ("countdown-small", 1600, 100, 0),
        pytest.param("countdown", 16_000, 1000, 0, marks=pytest.mark.slow),
    ],
)
def test_countdown_splits_share_no_problem_in_any_order(
    tmp_path: Path, source: str, n_train: int, n_test: int, seed: int
) -> None:
    data = DataConfig(source=source, n_train=n_train, n_validation=0, n_test=n_test, seed=seed)
    rows, metrics = prepared(data, tmp_path / "out")
    problems: dict[str, set[tuple[int, ...]]] = {"train": set(), "test": set()}
    for row in rows:
        asked = json.loads(row["metadata"])
        problems[row["split"]].add((*sorted(asked["numbers"]), asked["target"]))
    assert len(problems["train"]) == n_train and len(problems["test"]) == n_test
    assert not problems["train"] & problems["test"]
    assert metrics["problems"] == n_train + n_test


def test_problems_in_two_splits_or_in_an_evaluation_set_are_found() -> None:
    first, second = (asdict(row) for row in countdown_rows(2, 0))
    metadata = json.loads(first["metadata"])
    moved = json.dumps({**metadata, "numbers": metadata["numbers"][::-1]})
    train = {**first, "split": "train"}
    assert require_disjoint([train, {**second, "split": "test"}], {"task": [second]}) == 2
    with pytest.raises(RuntimeError, match="is in train and in test"):
        require_disjoint([train, {**first, "metadata": moved, "split": "test"}], {})
    with pytest.raises(RuntimeError, match="evaluation set task"):
        require_disjoint([train], {"task": [{**first, "metadata": moved}]})


# ---------------------------------------------------------------- running totals
WRITTEN = re.compile(
    r"(?P<a>-?\d+)(?P<c>[+-]\d)=(?P<d>-?\d+)\."
    r"|(?P<e>-?\d+) (?P<f>plus|minus) (?P<g>\d) is (?P<h>-?\d+)\."
    r"|(?P<i>Add|Take) (?P<j>\d) to get (?P<k>-?\d+)\."
)


def problem_in(question: str) -> Problem:
    """Read the numbers out of the words of a question."""
    told, _, asked = question.partition(". How many ")
    (_, start), *changes = re.findall(r"(\w+)(?: away)? (\d+)", told)
    name, _, _, things = told.split()[:4]
    assert asked == f"{things.rstrip('.')} does {name} have now?"
    gains = ("buys", "finds", "gets", "wins", "borrows")
    return (int(start), *(int(n) if verb in gains else -int(n) for verb, n in changes))


def steps_in(problem: Problem, trace: str) -> list[tuple[int, int, int]]:
    """Return (before, change, after) of every step of a trace."""
    steps, total = [], problem[0]
    for found in WRITTEN.finditer(trace):
        match found["a"], found["e"]:
            case str(a), None:
                step = int(a), int(found["c"]), int(found["d"])
            case None, str(e):
                sign = 1 if found["f"] == "plus" else -1
                step = int(e), sign * int(found["g"]), int(found["h"])
            case _:
                sign = 1 if found["i"] == "Add" else -1
                step = total, sign * int(found["j"]), int(found["k"])
        total = step[2]
        steps.append(step)
    return steps


def is_perfect(problem: Problem, trace: str) -> bool:
    steps = steps_in(problem, trace)
    right = all(before + change == after for before, change, after in steps)
    return right and [change for _, change, _ in steps] == [*problem[1:]]


def test_running_totals_are_right_distinct_and_seeded() -> None:
    rows = running_total_rows(1000, seed=3)
    problems = {problem_in(row.question) for row in rows}
    assert len(problems) == 1000
    for row in rows:
        problem = problem_in(row.question)
        totals = [sum(problem[:n]) for n in range(1, 5)]
        assert row.solution == row.answer == str(totals[-1]) and min(totals) >= 1
        assert 5 <= problem[0] <= 30 and all(2 <= abs(change) <= 9 for change in problem[1:])
        assert json.loads(row.metadata or "") == {
            "problem": f"{problem[0]}{''.join(f'{change:+}' for change in problem[1:])}"
        }
        assert outcome(asdict(row)) == "correct"
    assert rows == running_total_rows(1000, seed=3) != running_total_rows(1000, seed=4)
    assert rows[:100] == running_total_rows(100, seed=3)


def test_half_of_the_traces_have_no_fault_and_faults_are_of_two_kinds() -> None:
    rows = running_total_rows(2000, seed=0)
    assert {row.trace.split()[0] for row in rows if row.trace} >= {"Start:", "Add", "Take"}
    assert all(steps_in(problem_in(row.question), row.trace or "") for row in rows)
    perfect = [row for row in rows if is_perfect(problem_in(row.question), row.trace or "")]
    assert 0.42 < len(perfect) / len(rows) < 0.54
    faulty = [(problem_in(r.question), r.trace or "") for r in rows if r not in perfect]
    shorter = sum(len(steps_in(*each)) < 3 for each in faulty)
    wrong = sum(any(a + b != c for a, b, c in steps_in(*each)) for each in faulty)
    assert 0.3 < shorter / len(faulty) < 0.6 and 0.5 < wrong / len(faulty) < 0.9
    for problem, trace in faulty:
        for before, change, after in steps_in(problem, trace):
            assert trace.startswith(("Add", "Take")) or abs(before + change - after) <= 2


def test_perfect_traces_are_of_the_same_questions() -> None:
    graded, perfect = running_total_rows(400, 0), running_total_rows(300, 0, perfect=True)
    assert [row.question for row in graded[:300]] == [row.question for row in perfect]
    assert all(is_perfect(problem_in(row.question), row.trace or "") for row in perfect)
    rng = Random(0)
    assert all(trace_of((9, 2, 3, 4), 1.0, rng) for _ in range(200)), "never empty"
    with pytest.raises(UserError, match=r"running-totals has \d+ problems"):
        running_total_rows(1_000_000, 0)


def test_running_totals_of_the_test_are_in_no_training_set(tmp_path: Path) -> None:
    data = DataConfig(source="running-totals", n_train=200, n_validation=20, n_test=300)
    rows, metrics = prepared(data, tmp_path / "out")
    test = [row for row in rows if row["split"] == "test"]
    asked = {problem_in(row["question"]) for row in test}
    training = {problem_in(row["question"]) for row in rows if row["split"] != "test"}
    assert len(asked) == 300 and len(training) == 220 and not asked & training
    assert metrics["problems"] == 520 and metrics["with_trace"] == 520
    other = data.replaced(source="running-totals-perfect", n_validation=0, n_test=0)
    perfect, _ = prepared(other, tmp_path / "perfect", test)
    assert len(perfect) == 200
    assert not {problem_in(row["question"]) for row in perfect} & asked


def test_written_questions_may_have_arithmetic_answers(tmp_path: Path) -> None:
    source = tmp_path / "questions.jsonl"
    lines = [{"question": f"What is {a} plus one?", "solution": str(a + 1)} for a in range(30)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = DataConfig(
        source=str(source), grader="arithmetic", n_train=20, n_validation=0, n_test=10,
        near_duplicate=None,
    )  # fmt: skip
    rows, _ = prepared(data, tmp_path / "out")
    assert len(rows) == 30 and {row["grader"] for row in rows} == {"arithmetic"}
    assert problem_of("arithmetic", "12 + 7", None) == problem_of("arithmetic", "7+12", None)
    assert problem_of("arithmetic", "What is 12 + 7?", None) is None
