"""Intervals cover what they promise, and never claim certainty."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_core.evaluation.intervals import clustered_mean, pass_at_k
from rlt_core.evaluation.scores import score_rows

values_Q = st.lists(st.integers(0, 8).map(lambda correct: correct / 8), min_size=1, max_size=40)


@given(values_Q)
def test_the_interval_holds_the_mean_and_has_a_width(values: list[float]) -> None:
    estimate = clustered_mean(values, completions=8 * len(values))
    assert estimate is not None
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.high - estimate.low > 0
    assert estimate.value == pytest.approx(np.mean(values))


@given(values_Q)
def test_right_and_wrong_are_mirror_images(values: list[float]) -> None:
    one = clustered_mean(values, 8 * len(values))
    other = clustered_mean([1 - value for value in values], 8 * len(values))
    assert one is not None and other is not None
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_unanimous_questions_narrow_with_their_number_not_with_completions(value: float) -> None:
    def width(questions: int, n: int) -> float:
        estimate = clustered_mean([value] * questions, questions * n)
        assert estimate is not None
        return estimate.high - estimate.low

    assert width(30, 1) == width(30, 64) > width(100, 1) > 0


def test_one_question_says_nothing_about_others_and_none_gives_no_score() -> None:
    estimate = clustered_mean([0.5], 16)
    assert estimate is not None and (estimate.low, estimate.high) == (0.0, 1.0)
    assert clustered_mean([], 0) is None


def test_repeating_a_completion_adds_no_knowledge() -> None:
    marks = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0] * 5
    once, often = clustered_mean(marks, 30), clustered_mean(marks, 30 * 64)
    assert once is not None and often is not None
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.05)


@pytest.mark.parametrize("questions", [12, 30, 200])
@pytest.mark.parametrize("mean", [0.08, 0.5, 0.9])
@pytest.mark.parametrize("n", [1, 8])
def test_coverage_is_near_95_percent(questions: int, mean: float, n: int) -> None:
    """Questions differ in difficulty (beta-binomial with intra-question correlation 1/3)."""
    rng = np.random.default_rng(0)
    difficulty = rng.beta(2 * mean, 2 * (1 - mean), size=(1000, questions))
    scores = rng.binomial(n, difficulty) / n
    covered = 0
    for values in scores:
        estimate = clustered_mean(values, questions * n)
        assert estimate is not None
        covered += estimate.low <= mean <= estimate.high
    assert 0.92 <= covered / len(scores) <= 0.995


@given(st.integers(1, 9), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    marks = [True] * correct + [False] * (n - correct)
    subsets = list(itertools.combinations(marks, k))
    assert pass_at_k(correct, n, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_more_than_n_is_refused() -> None:
    with pytest.raises(ValueError, match="pass@3"):
        pass_at_k(1, 2, 3)


def _sample(question: str, outcome: str, task: str = "test") -> dict[str, object]:
    return {"task": task, "seed": 0, "model": "m", "question_id": question, "outcome": outcome}


def test_scores_leave_out_what_cannot_be_graded_and_count_it() -> None:
    samples = [
        _sample("a", "correct"), _sample("a", "wrong"),
        _sample("b", "correct"), _sample("b", "ungradable"),
        _sample("c", "unparsable"), _sample("c", "unparsable"),
        _sample("d", "ungradable"), _sample("d", "ungradable"),
    ]  # fmt: skip
    avg, pass_1, pass_2 = score_rows(samples, pass_at=(1, 2), label="base")
    assert (avg["metric"], avg["value"], avg["questions"], avg["ungraded"]) == ("avg@2", 0.5, 3, 3)
    assert {**pass_1, "metric": ""} == {**avg, "metric": ""}
    assert (pass_2["metric"], pass_2["value"], pass_2["questions"]) == ("pass@2", 0.5, 2)


def test_an_answer_on_which_the_grader_failed_is_wrong_and_counted() -> None:
    samples = [
        _sample("a", "correct"),
        _sample("a", "grader_failed"),
        _sample("b", "grader_failed"),
    ]
    avg, pass_2 = score_rows(samples, pass_at=(2,), label="base")
    assert (avg["value"], avg["questions"], avg["ungraded"], avg["grader_failed"]) == (
        0.25,
        2,
        0,
        2,
    )
    assert (pass_2["value"], pass_2["grader_failed"]) == (1.0, 2)


def test_a_task_without_graded_completions_has_a_null_score() -> None:
    rows = score_rows([_sample("a", "ungradable"), _sample("a", "correct", "two")], (), "base")
    assert [(row["task"], row["value"], row["ungraded"]) for row in rows] == [
        ("test", None, 1), ("two", 1.0, 0),
    ]  # fmt: skip
