"""The reward is what the paper's equations say, number for number."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_core.config import RewardSpec
from rlt_core.reward.formula import REDUCTIONS, rank_rewards, reward_parts

logprob = st.floats(min_value=-50, max_value=0)
SPEC = RewardSpec()


def test_a_worked_example() -> None:
    parts = reward_parts([-1.0, -3.0], [-2.0, -1.0, -0.5], [-1.0, -1.5, -0.25], True, SPEC)
    # k = 1, -0.5, 0.25: mean 0.25, max 1
    assert parts.solution_mean == -2.0 and parts.solution_min == -3.0
    assert parts.kl_mean == 0.25 and parts.kl_max == 1.0
    assert parts.r_ss == pytest.approx(-2.03, abs=1e-12)
    assert parts.r_kl == pytest.approx(0.26, abs=1e-12)
    assert parts.reward == pytest.approx(-2.03 - 3 * 0.26, abs=1e-12)


@given(
    st.lists(logprob, min_size=1, max_size=20),
    st.lists(st.tuples(logprob, logprob), min_size=1, max_size=20),
    st.booleans(),
    st.floats(0, 1),
    st.floats(0, 10),
)
def test_equals_the_equations_in_plain_python(
    solution: list[float],
    think: list[tuple[float, float]],
    closed: bool,
    alpha: float,
    kl_weight: float,
) -> None:
    spec = RewardSpec(alpha=alpha, kl_weight=kl_weight)
    kl = [teacher - student for student, teacher in think]
    r_ss = math.fsum(solution) / len(solution) + alpha * min(solution)
    r_kl = math.fsum(kl) / len(kl) + alpha * max(kl)
    expected = r_ss - kl_weight * r_kl + (0 if closed else -1)
    student, teacher = zip(*think, strict=True)
    assert reward_parts(solution, student, teacher, closed, spec).reward == pytest.approx(
        expected, abs=1e-9
    )


def test_an_unclosed_explanation_costs_the_penalty_and_nothing_else() -> None:
    closed = reward_parts([-1.0], [-1.0], [-2.0], True, SPEC)
    unclosed = reward_parts([-1.0], [-1.0], [-2.0], False, SPEC)
    assert unclosed.penalty == -1.0 and closed.penalty == 0.0
    assert unclosed == dataclasses.replace(closed, reward=closed.reward - 1, penalty=-1.0)


def test_an_empty_explanation_counts_one_for_each_kl_reduction() -> None:
    parts = reward_parts([-1.0], [], [], True, SPEC)
    assert parts.kl_mean == parts.kl_max == 1.0
    assert parts.reward == pytest.approx(-1.01 - 3 * 1.01)


def test_every_reduction_is_offered() -> None:
    values = [-4.0, -1.0, -3.0]
    expected = {"mean": -8 / 3, "min": -4.0, "max": -1.0, "median": -3.0, "sum": -8.0}
    assert set(REDUCTIONS) == set(expected)
    for name, value in expected.items():
        spec = RewardSpec.model_validate({"solution_reduction": name, "think_extreme": name})
        parts = reward_parts(values, values, [0.0] * 3, True, spec)
        negated = {"min": "max", "max": "min"}.get(name, name)
        assert parts.solution_mean == pytest.approx(value)
        assert parts.kl_max == pytest.approx(-expected[negated])


def test_float32_input_is_reduced_in_float64() -> None:
    values = np.full(100_001, -0.1, dtype=np.float32)
    exact = float(np.float32(-0.1))
    assert reward_parts(values, [-1.0], [-1.0], True, SPEC).solution_mean == pytest.approx(
        exact, abs=1e-12
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_not_finite_is_refused(bad: float, place: int) -> None:
    lists = [[-1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0]]
    lists[place][1] = bad
    with pytest.raises(ValueError, match="token 1 is not finite"):
        reward_parts(lists[0], lists[1], lists[2], True, SPEC)


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="empty solution"):
        reward_parts([], [-1.0], [-1.0], True, SPEC)
    with pytest.raises(ValueError, match="1 student and 2 teacher"):
        reward_parts([-1.0], [-1.0], [-1.0, -2.0], True, SPEC)
    with pytest.raises(ValueError, match="shape"):
        reward_parts([[-1.0]], [-1.0], [-1.0], True, SPEC)


@given(st.lists(st.integers(-3, 3), max_size=12))
def test_ranks_follow_the_reward_and_then_the_sample(rewards: list[int]) -> None:
    ranks = rank_rewards([float(reward) for reward in rewards])
    assert sorted(ranks) == list(range(1, len(rewards) + 1))
    by_rank = sorted(range(len(rewards)), key=lambda i: ranks[i])
    assert by_rank == sorted(range(len(rewards)), key=lambda i: (-rewards[i], i))
