"""Near-duplicates and overlaps: found whenever there, by anyone's slow definition."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_core.config import DataConfig
from rlt_core.data.dedup import COMMON_LEAST, find_overlaps, near_duplicates, problem_of
from rlt_core.data.generators.countdown import EVALUATION_SEED
from rlt_core.data.prepare import prepare_questions
from rlt_core.data.rawrow import RawRow, question_id
from rlt_core.errors import UserError
from rlt_core.evaluation.benchmarks import benchmark_task
from rlt_core.progress import Progress
from rlt_core.rows import read_rows
from tests.rlt_core.data.prepared import RENDERER, prepare

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def prose(seed: int, words: int) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices(LETTERS, k=5)) for _ in range(words))


def asked(text: str, name: str = "q", **fields: Any) -> dict[str, Any]:
    return {"question_id": name, "question": text, "grader": "math", "metadata": None} | fields


def shared(training: str, evaluated: str) -> list[tuple[int | None, str]]:
    rows = find_overlaps([RawRow(1, training, "s")], {"task": [asked(evaluated, "e")]})
    return [(row["n"], row["shared"]) for row in rows]


# ---------------------------------------------------------------- near-duplicates
@given(
    st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=14).map(" ".join), max_size=12),
    st.sampled_from([0.3, 0.5, 0.8, 1.0]),
)
def test_near_duplicates_are_those_of_the_definition(questions: list[str], limit: float) -> None:
    rows = [RawRow(i, question, "s") for i, question in enumerate(questions, start=1)]

    def shingles(row: RawRow) -> set[str]:
        words = row.question.split()
        return {" ".join(words[i : i + 8]) for i in range(max(1, len(words) - 7))}

    kept: list[RawRow] = []
    dropped = []
    for place, row in enumerate(rows):
        mine = shingles(row)
        alike = [len(mine & shingles(k)) / len(mine | shingles(k)) >= limit for k in kept]
        if any(alike):
            dropped.append(place)
        else:
            kept.append(row)
    found = near_duplicates(rows, limit)
    assert sorted(found) == dropped
    for place, (like, similarity) in found.items():
        theirs, mine = shingles(like), shingles(rows[place])
        assert math.isclose(similarity, len(mine & theirs) / len(mine | theirs))
        assert like in kept and similarity >= limit


def test_a_sign_is_a_difference_and_punctuation_is_none() -> None:
    texts = ["What is 3+3?", "What is 3-3?", "what is 3 + 3", "f(x) = 2", "f'(x) = 2", "5!", "5"]
    rows = [RawRow(i, text, "s") for i, text in enumerate(texts)]
    assert list(near_duplicates(rows, 1.0)) == [2]


def test_one_word_of_a_long_question_is_near_and_of_a_short_one_is_not() -> None:
    rows = [
        RawRow(1, f"{prose(1, 100)} seven {prose(2, 100)}", "s"),
        RawRow(2, f"{prose(1, 100)} eight {prose(2, 100)}", "s"),
        RawRow(3, f"{prose(3, 10)} seven {prose(4, 10)}", "s"),
        RawRow(4, f"{prose(3, 10)} eight {prose(4, 10)}", "s"),
    ]
    assert list(near_duplicates(rows, 0.8)) == [1]


# ---------------------------------------------------------------- overlaps
@pytest.mark.parametrize(("common", "n"), [(7, None), (8, 8), (12, 8), (13, 13), (30, 13)])
def test_the_longest_n_gram_shared_is_named(common: int, n: int | None) -> None:
    part = prose(0, common)
    found = shared(f"{prose(1, 9)} {part} {prose(2, 9)}", f"{prose(3, 9)} {part.upper()}!")
    if n is None:
        assert found == []
    else:
        assert found == [(n, " ".join(part.split()[:n]))]


def test_short_questions_are_compared_as_a_whole() -> None:
    assert shared("What is 1+1?", "what  is 1 + 1") == [(None, "what is 1 + 1")]
    assert shared("What is 1+1?", "What is 1-1?") == []
    assert shared("What is 1+1?", "What is 1+1? Explain.") == []


def test_the_prompt_around_a_benchmarks_questions_is_not_compared() -> None:
    prompt = "Solve the following problem and write the final answer in a box at the very end: "
    texts = ["What is 1+1?", prose(1, 20), prose(2, 20)]
    evaluated = [asked(f"{prompt}{text} Think.", f"e{i}") for i, text in enumerate(texts)]
    texts = ["What is 1+1?", prompt + prose(3, 20), prose(2, 20)]
    training = [RawRow(i, text, "s") for i, text in enumerate(texts)]
    rows = list(find_overlaps(training, {"task": evaluated}))
    assert {(row["question_id"], row["evaluation_id"]) for row in rows} == {
        (question_id(texts[0]), "e0"), (question_id(texts[2]), "e2"),
    }  # fmt: skip


def test_wording_that_many_training_questions_have_is_no_sign_of_a_copy() -> None:
    wording = "find the sum of all positive integers n such that"

    def overlapping(count: int) -> int:
        training = [RawRow(i, f"{wording} {prose(i, 5)}", "s") for i in range(count)]
        found = find_overlaps(training, {"task": [asked(f"{wording} {prose(99, 9)}", "e")]})
        return len(list(found))

    assert overlapping(COMMON_LEAST) == COMMON_LEAST
    assert overlapping(COMMON_LEAST + 1) == 0


def test_generated_problems_are_compared_by_what_they_ask_for() -> None:
    one, other = [3, 5, 7], [7, 3, 5]

    def question(numbers: list[int], target: int) -> dict[str, Any]:
        metadata = json.dumps({"numbers": numbers, "target": target})
        return asked(f"Reach {target} with {numbers}", grader="countdown", metadata=metadata)

    row = question(one, 15)
    training = [RawRow(1, row["question"], "s", grader="countdown", metadata=row["metadata"])]
    assert list(find_overlaps(training, {"task": [question(other, 15)]}))
    assert not list(find_overlaps(training, {"task": [question(other, 16)]}))


# ---------------------------------------------------------------- dataset-prep
def written(n: int) -> list[dict[str, str]]:
    return [{"question": prose(i, 20), "solution": str(i)} for i in range(n)]


@pytest.mark.parametrize("overlap", ["drop", "report"])
def test_overlaps_are_dropped_or_only_reported(tmp_path: Path, overlap: str) -> None:
    bench = [asked(prose(4, 20), "math-4"), asked(prose(77, 20), "math-77")]
    metrics = prepare(tmp_path, written(10), {"math": bench}, overlap=overlap)
    (row,) = read_rows(tmp_path / "out", "eval_overlaps")
    assert (row["task"], row["evaluation_id"], row["n"]) == ("math", "math-4", 13)
    assert (metrics["overlapping"], metrics["overlapping_13"]) == (1, 1)
    kept = {row["question_id"] for row in read_rows(tmp_path / "out", "questions")}
    dropped = read_rows(tmp_path / "out", "dropped")
    if overlap == "report":
        assert row["question_id"] in kept and not dropped and metrics["train"] == 10
    else:
        assert row["question_id"] not in kept and metrics["train"] == 9
        (one,) = dropped
        detail = "13 words of math, question math-4"
        assert (one["row"], one["reason"], one["detail"]) == (5, "overlap", detail)


def test_the_datas_own_test_is_an_evaluation_set(tmp_path: Path) -> None:
    records = written(30)
    for record in records[:12:2]:
        record["question"] += f" {prose(1000, 9)}"
    prepare(tmp_path, records, n_test=10)
    rows = read_rows(tmp_path / "out", "questions")
    marked = {row["split"] for row in rows if prose(1000, 9) in row["question"]}
    assert marked == {"test"}, "six questions share nine words; some are in the test at this seed"
    assert {row["task"] for row in read_rows(tmp_path / "out", "eval_overlaps")} == {"test"}


def test_near_duplicates_are_dropped_and_listed(tmp_path: Path) -> None:
    records = written(5)
    records.append({"question": records[2]["question"].upper() + " now?", "solution": "2"})
    assert prepare(tmp_path, records)["near_duplicates"] == 1
    (dropped,) = read_rows(tmp_path / "out", "dropped")
    assert (dropped["row"], dropped["reason"]) == (6, "near_duplicate")
    assert dropped["detail"] == "like row 3: Jaccard index 0.93"
    assert prepare(tmp_path, records, near_duplicate=None)["train"] == 6


def test_too_few_questions_without_overlap_are_refused(tmp_path: Path) -> None:
    bench = {"math": [asked(prose(i, 20), f"e{i}") for i in range(8)]}
    with pytest.raises(UserError, match=r"2 training questions are left.*overlap with math"):
        prepare(tmp_path, written(10), bench, n_train=5)
    assert not (tmp_path / "out").exists()


def test_lengths_are_in_tokens(tmp_path: Path) -> None:
    metrics = prepare(tmp_path, written(9))
    lengths = sorted(len(RENDERER.encode(prose(i, 20))) for i in range(9))
    assert metrics["question_tokens_p50"] == lengths[4]
    assert metrics["question_tokens_p100"] == lengths[-1]
    assert metrics["solution_tokens_p100"] == 1 and "trace_tokens_p50" not in metrics


def test_countdown_for_training_has_nothing_of_the_evaluation_set(tmp_path: Path) -> None:
    tested = benchmark_task("countdown").questions
    data = DataConfig(source="countdown", n_train=40, n_validation=0, n_test=5)
    leaked = DataConfig(**{**data.model_dump(), "seed": EVALUATION_SEED})
    metrics = prepare_questions(leaked, RENDERER, tmp_path, Progress(), {"countdown": tested})
    assert metrics["train"] == 40 and metrics["overlapping"] > 40

    def problems(rows: list[dict[str, Any]]) -> set[str | None]:
        return {problem_of(row["grader"], row["question"], row["metadata"]) for row in rows}

    train = [row for row in read_rows(tmp_path, "questions") if row["split"] == "train"]
    assert len(problems(train)) == 40 and not problems(train) & problems(tested)
