"""The plain loop that the reward is compared with does the same work."""

from dataclasses import replace

import numpy as np
import pytest

from infra.benchmarks.reward import Case, our_rewards, plain_reward, tiny_case


@pytest.fixture(scope="module")
def case() -> Case:
    return tiny_case(questions=2, group=3)


def plain_rewards(case: Case) -> list[float]:
    return [plain_reward(case, item) for item in case.items]


def test_the_plain_loop_and_ours_give_the_same_rewards(case: Case) -> None:
    plain = plain_rewards(case)
    assert our_rewards(case) == pytest.approx(plain, abs=1e-3)
    assert np.ptp(plain) > 0.1  # equal rewards would agree whatever was scored


def test_swapped_models_change_the_rewards(case: Case) -> None:
    swapped = replace(case, student=case.teacher, teacher=case.student)
    assert np.abs(np.subtract(plain_rewards(swapped), plain_rewards(case))).max() > 0.1
