"""Questions are merged, measured and split; nothing is lost in silence."""

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_core.config import DataConfig
from rlt_core.data.dedup import find_overlaps, near_duplicates
from rlt_core.data.prepare import prepare_questions
from rlt_core.data.rawrow import normalised, question_id
from rlt_core.data.sources import read_source
from rlt_core.data.trace_selection import choose
from rlt_core.errors import Stopped, UserError
from rlt_core.progress import Progress
from rlt_core.rows import read_rows
from tests.rlt_core.data import prepared
from tests.rlt_core.data.prepared import RENDERER
from tests.row_files import write


def prepare(tmp_path: Path, records: list[dict[str, str]], **config: Any) -> dict[str, float]:
    return prepared.prepare(tmp_path, records, **{"n_validation": 2, "n_test": 3} | config)


def numbered(n: int) -> list[dict[str, str]]:
    return [{"question": f"What is {i}+{i}?", "solution": str(2 * i)} for i in range(n)]


def test_splits_are_disjoint_and_complete(tmp_path: Path) -> None:
    metrics = prepare(tmp_path, numbered(20))
    rows = read_rows(tmp_path / "out", "questions")
    assert (metrics["train"], metrics["validation"], metrics["test"]) == (15, 2, 3)
    assert len({row["question_id"] for row in rows}) == 20
    assert {(row["question"], row["answer"], row["grader"]) for row in rows} == {
        (record["question"], record["solution"], "math") for record in numbered(20)
    }
    for row in rows:
        prompt = RENDERER.teacher_prompt(row["question"], row["solution"])
        assert row["prompt_tokens"] == len(prompt)


def test_questions_of_a_test_file_are_the_test_and_leave_the_training(tmp_path: Path) -> None:
    extra = [
        {"question": "What is 7 times 6?", "solution": "42"},
        {"question": "", "solution": "1"},
    ]
    file = write(tmp_path / "test.jsonl", [*numbered(4), *extra])
    metrics = prepare(tmp_path, numbered(20), test_source=str(file), n_test=9, max_dropped=0.5)
    rows = read_rows(tmp_path / "out", "questions")
    tested = {row["question"] for row in rows if row["split"] == "test"}
    assert tested == {record["question"] for record in [*numbered(4), extra[0]]}
    assert tested.isdisjoint(row["question"] for row in rows if row["split"] == "train")
    assert metrics["test"] == 5
    assert (metrics["train"], metrics["validation"], metrics["duplicates"]) == (14, 2, 4)
    assert metrics["bad_rows"] == 1
    (bad,) = (row for row in read_rows(tmp_path / "out", "dropped") if row["reason"] == "empty")
    assert bad["detail"].startswith("of data.test_source: the question")
    fewer = prepare(tmp_path, numbered(20), test_source=str(file), n_test=2, max_dropped=0.5)
    assert fewer["test"] == 2


def test_the_seed_alone_chooses_and_held_out_stays_held_out(tmp_path: Path) -> None:
    def split(name: str, **config: Any) -> dict[str, set[str]]:
        (tmp_path / name).mkdir()
        prepare(tmp_path / name, numbered(40), **config)
        rows = read_rows(tmp_path / name / "out", "questions")
        return {
            part: {row["question"] for row in rows if row["split"] == part}
            for part in ("train", "validation", "test")
        }

    first, small = split("first"), split("small", n_train=5)
    assert first == split("again")
    assert first["test"] != split("seed", seed=1)["test"]
    assert small["test"] == first["test"] and small["train"] < first["train"]


def test_duplicates_are_merged_and_listed(tmp_path: Path) -> None:
    records = [*numbered(10), {"question": "what  IS 3+3?\n", "solution": "six"}, numbered(10)[4]]
    metrics = prepare(tmp_path, records)
    assert (metrics["rows"], metrics["duplicates"], metrics["train"]) == (12, 2, 5)
    dropped = read_rows(tmp_path / "out", "dropped")
    assert [(row["row"], row["reason"], row["detail"]) for row in dropped] == [
        (11, "duplicate", "the question of row 4, another solution"),
        (12, "duplicate", "the question of row 5, same solution"),
    ]


def test_too_long_prompts_are_dropped_and_listed(tmp_path: Path) -> None:
    records = [*numbered(10), {"question": "why " * 100, "solution": "so"}]
    metrics = prepare(tmp_path, records, max_prompt_tokens=100)
    assert (metrics["prompt_too_long"], metrics["train"]) == (1, 5)
    (dropped,) = read_rows(tmp_path / "out", "dropped")
    assert dropped["row"] == 11 and "data.max_prompt_tokens is 100" in dropped["detail"]


def test_too_few_questions_are_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"5 questions are left of 6 rows \(1 dropped\).*at least 6"
    ):
        prepare(tmp_path, [*numbered(5), numbered(5)[0]])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("field", ["question", "solution"])
def test_tags_in_the_text_are_refused(tmp_path: Path, field: str) -> None:
    records = numbered(10)
    records[6][field] += " </think>"
    with pytest.raises(UserError, match=f"row 7: the {field} contains </think>"):
        prepare(tmp_path, records)


def test_a_solution_without_an_answer_is_ungradable(tmp_path: Path) -> None:
    records = [*numbered(9), {"question": "Why?", "solution": "Because the sky reflects nothing."}]
    assert prepare(tmp_path, records)["ungradable"] == 1


def test_one_bad_row_is_listed_beside_the_others(tmp_path: Path) -> None:
    records = numbered(40)
    records[6]["question"] += " </think>"
    records[7]["question"] = ""
    metrics = prepare(tmp_path, records)
    assert (metrics["rows"], metrics["bad_rows"], metrics["train"]) == (40, 2, 33)
    dropped = read_rows(tmp_path / "out", "dropped")
    assert [(row["row"], row["reason"]) for row in dropped] == [(7, "tags"), (8, "empty")]


def test_memory_is_less_than_1000_bytes_a_row(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        rng = Random(0)
        path = tmp_path / f"{rows}.csv"
        words = [f"{rng.getrandbits(28):06x}" for _ in range(5000)]
        lines = (f"{' '.join(rng.choices(words, k=33))},{i}\n" for i in range(rows))
        path.write_text("question,solution\n" + "".join(lines))
        gc.collect()
        tracemalloc.start()
        questions = read_source(DataConfig(source=str(path))).rows
        near_duplicates(questions, 0.8)
        list(find_overlaps(questions, {}))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(300)
    assert (peak(4000) - peak(2000)) / 2000 < 1000


def test_every_step_reports_progress_and_can_be_stopped(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", numbered(1200))
    data = DataConfig(source=str(path), near_duplicate=0.8)
    seen: list[int] = []
    prepare_questions(
        data, RENDERER, tmp_path / "out", Progress(lambda done, total, _: seen.append(done))
    )
    assert seen == sorted(seen) and {done // 1000 for done in seen} == set(range(6))
    calls = 0

    def stop_after(limit: int) -> Callable[[], bool]:
        def stop() -> bool:
            nonlocal calls
            calls += 1
            return calls > limit

        return stop

    for limit in range(0, len(seen), 2):
        calls = 0
        with pytest.raises(Stopped):
            prepare_questions(
                data, RENDERER, tmp_path / "s", Progress(should_stop=stop_after(limit))
            )


@given(st.text(), st.text())
def test_equal_normal_forms_are_equal_ids(first: str, second: str) -> None:
    assert (question_id(first) == question_id(second)) == (normalised(first) == normalised(second))
    assert normalised(normalised(first)) == normalised(first)


def test_choose_keeps_order_and_nests() -> None:
    items = list("abcdefghij")
    large, small = choose(items, 7, 3), choose(items, 3, 3)
    assert large == sorted(large) and set(small) < set(large) and len(small) == 3
    assert choose(items, None, 3) == items == choose(items, 99, 3)
    assert choose(items, 3, 4) != small


# ---------------------------------------------------------------- the students' system prompt
def with_systems(*systems: str | None) -> list[dict[str, Any]]:
    return [
        row | ({} if system is None else {"system": system})
        for row, system in zip(numbered(20), systems * 20, strict=False)
    ]


def test_the_datas_one_system_prompt_is_kept_to_the_letter(tmp_path: Path) -> None:
    prepare(tmp_path, with_systems(" Think.\n"), fields={"system": "system"})
    rows = read_rows(tmp_path / "out", "questions")
    assert {row["system"] for row in rows} == {" Think.\n"}
    assert prepare(tmp_path, with_systems("Think.", "Answer."))["train"] == 15  # not asked for


@pytest.mark.parametrize(
    ("systems", "message"),
    [
        (("Think.", "Answer."), "one system prompt.*null"),
        ((None,), r"no field 'system'.*data.fields.system"),
        (("",), "one system prompt.*null"),
        (("Think.", ""), "one system prompt.*null"),
    ],
)
def test_several_system_prompts_or_none_are_refused_with_the_fix(
    tmp_path: Path, systems: tuple[str | None, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, with_systems(*systems), fields={"system": "system"})


def test_generated_questions_have_no_system_prompt(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one system prompt"):
        prepare(tmp_path, [], source="arithmetic", n_train=9, fields={"system": "system"})


def test_an_answer_that_does_not_grade_itself_is_kept_without_grader_and_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [{**record, "answer": record["solution"]} for record in numbered(12)]
    records[4]["answer"] = r"\frac{8"
    metrics = prepare(tmp_path, records, fields={"answer": "answer"})
    assert (metrics["ungradable"], metrics["train"]) == (1, 7)
    rows = {row["question"]: row for row in read_rows(tmp_path / "out", "questions")}
    assert (rows["What is 4+4?"]["grader"], rows["What is 4+4?"]["answer"]) == ("none", r"\frac{8")
    assert rows["What is 5+5?"]["grader"] == "math"
    (listed,) = read_rows(tmp_path / "out", "dropped")
    assert (listed["row"], listed["reason"]) == (5, "ungradable")
    assert "8" in listed["detail"] and "1 right answers" in caplog.text
