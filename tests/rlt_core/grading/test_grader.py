"""Hangs and deaths of the grading process cost one item, never the run."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from rlt_core.extensions import pinned
from rlt_core.grading import GradeItem, Grader

HANG = GradeItem(r"\boxed{9^{9^{9^{9}}}}", "3", "math")
GOOD = GradeItem("3", "3", "arithmetic")


def gone(pid: int, within_s: float = 10.0) -> bool:
    """Whether a process ends (a zombie has ended) within some seconds."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        status = Path(f"/proc/{pid}/stat")
        try:
            if status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_a_hanging_item_is_killed_and_the_rest_goes_on() -> None:
    with Grader(timeout_s=1.0) as grader:
        grader.grade_many([GradeItem("1", "1", "math")])  # imports math-verify
        start = time.monotonic()
        outcomes = [grade.outcome for grade in grader.grade_many([GOOD, HANG, GOOD])]
        assert outcomes == ["correct", "grader_failed", "correct"]
        assert time.monotonic() - start < 10


def test_items_are_graded_beside_hanging_ones_and_in_order() -> None:
    checks = []
    with Grader(timeout_s=3.0, max_workers=2) as grader:
        outcomes = grader.grade_many([HANG, GOOD, HANG, GOOD], lambda: checks.append(0))
        assert [each.outcome == "correct" for each in outcomes] == [False, True, False, True]
        assert len(grader._workers) <= 2 and len(checks) > 3


def test_a_killed_worker_is_replaced() -> None:
    with Grader(timeout_s=5.0) as grader:
        assert grader.grade_many([GOOD])[0].outcome == "correct"
        os.kill(grader._workers[0].process.pid, signal.SIGKILL)
        outcomes = [grade.outcome for grade in grader.grade_many([GOOD, GOOD])]
        assert outcomes in (["correct", "correct"], ["grader_failed", "correct"])


def test_an_answer_too_big_for_the_machine_is_not_correct() -> None:
    with Grader(timeout_s=2.0) as grader:
        [grade] = grader.grade_many([GradeItem(r"\boxed{2^{10^{11}}}", "7", "math")])
        assert grade.outcome in ("wrong", "grader_failed")


LARGE_IMPORT = """
import mmap
held = mmap.mmap(-1, 6 * 2**30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
def right(solution, answer):
    return len(bytearray(int(solution))) == int(answer)
"""
"""Maps address space as GPU libraries do (0x4000: MAP_NORESERVE); then takes memory as told."""


def test_a_graders_own_imports_do_not_count_as_memory_of_an_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large_import.py").write_text(LARGE_IMPORT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    path = pinned("large_import:right")
    with Grader() as grader:
        grades = grader.grade_many([GradeItem(n, n, path) for n in ("7", str(5 * 2**30))])
    assert [grade.outcome for grade in grades] == ["correct", "grader_failed"]


def test_a_groups_worth_of_items_is_graded_at_once() -> None:
    items = [GradeItem(f"{i} + 1 = {i + 1}", str(i + 1), "arithmetic") for i in range(256)]
    with Grader() as grader:
        assert {grade.outcome for grade in grader.grade_many(items)} == {"correct"}


def test_text_of_any_kind_and_length_passes_through() -> None:
    long = "x" * 1_000_000 + " 42"
    odd = "zero\0 line\u2028 lone \ud800 \N{GRINNING FACE}\r\n 42"
    with Grader(timeout_s=20.0) as grader:
        grades = grader.grade_many(
            [GradeItem(text, "42", kind) for text in (long, odd) for kind in ("arithmetic", "math")]
        )
    assert [grade.outcome for grade in grades] == ["correct"] * 4


def test_right_answers_are_checked_in_the_worker() -> None:
    def question(answer: str | None, grader: str = "math") -> dict[str, str | None]:
        return {"answer": answer, "grader": grader, "metadata": None}

    good = [question("3"), question("#### 1,000"), question("B", "multiple_choice")]
    without = [question(None), question("x", "none")]
    bad = [question(r"\frac{1"), question("E", "multiple_choice"), question(None, "countdown")]
    with Grader() as grader:
        assert grader.self_check([*good, *without, *bad]) == [5, 6, 7]


def test_thousands_of_right_answers_are_checked_in_seconds() -> None:
    answers = ("{}", "{}/7", r"\frac{{{}}}{{7}}", r"x = {} + \sqrt{{2}}", r"({}, \pi)")
    rows = [
        {"answer": answers[i % 5].format(i), "grader": "math", "metadata": None}
        for i in range(2000)
    ]
    start = time.process_time()
    with Grader() as grader:
        assert grader.self_check(rows) == []
    assert time.process_time() - start < 30


def _grade_in_child(connection: Connection) -> None:
    with Grader() as grader:
        connection.send([grade.outcome for grade in grader.grade_many([GOOD])])


def test_it_works_in_a_forked_daemonic_child() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_grade_in_child, args=(theirs,), daemon=True)
    child.start()
    assert ours.poll(30) and ours.recv() == ["correct"]
    child.join(10)


def _use_inherited(grader: Grader, connection: Connection) -> None:
    connection.send([grade.outcome for grade in grader.grade_many([GOOD] * 3)])
    grader.close()


def test_a_fork_does_not_speak_to_its_parents_worker() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    with Grader() as grader:
        grader.grade_many([GOOD])
        workers = list(grader._workers)
        child = context.Process(target=_use_inherited, args=(grader, theirs))
        child.start()
        assert ours.poll(30) and ours.recv() == ["correct"] * 3
        child.join(10)
        assert grader.grade_many([GOOD])[0].outcome == "correct"
        assert grader._workers == workers


ORPHAN = """
import sys, threading
from rlt_core.grading import Grader, GradeItem
grader = Grader(timeout_s=600)
grader.grade_many([GradeItem("1", "1", "math")])
print(grader._workers[0].process.pid, flush=True)
item = {item}
grader.grade_many([GradeItem(*item)]) if item else sys.stdin.read()
"""


@pytest.mark.parametrize("item", [None, (HANG.solution, HANG.answer, "math")])
def test_the_worker_dies_with_its_parent(item: tuple[str, str, str] | None) -> None:
    code = ORPHAN.format(item=repr(item))
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdin and parent.stdout
    pid = int(parent.stdout.readline())
    time.sleep(0.5)  # let it hang
    assert not gone(pid, within_s=0.1)
    parent.kill()
    parent.communicate()
    assert gone(pid)
