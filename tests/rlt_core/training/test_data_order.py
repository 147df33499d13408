"""Data order, micro-batches, and the signs of a collapse."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_core.config import SFTConfig
from rlt_core.errors import UserError
from rlt_core.reward.diagnostics import CLIPPED_ALARM, COMPRESSION_ALARM, COPIED_ALARM
from rlt_core.training.data_order import data_order, longest_first, micro_batches, total_steps
from rlt_core.training.metrics import alarms

SMALL = st.integers(1, 40)


@given(rows=SMALL, rows_per_step=SMALL, steps=SMALL, seed=st.integers(0, 9))
def test_every_epoch_sees_every_row_once(
    rows: int, rows_per_step: int, steps: int, seed: int
) -> None:
    order = data_order(rows, rows_per_step, steps, seed)
    assert len(order) == rows_per_step * steps
    for start in range(0, len(order) - rows + 1, rows):
        assert sorted(order[start : start + rows]) == list(range(rows))


@given(rows=SMALL, rows_per_step=SMALL, steps=SMALL, more=SMALL)
def test_a_longer_training_begins_alike(
    rows: int, rows_per_step: int, steps: int, more: int
) -> None:
    order = data_order(rows, rows_per_step, steps, 0)
    assert data_order(rows, rows_per_step, steps + more, 0)[: len(order)] == order


@given(lengths=st.lists(SMALL, min_size=1), rows_per_step=SMALL)
def test_sorting_keeps_each_step(lengths: list[int], rows_per_step: int) -> None:
    order = data_order(len(lengths), rows_per_step, 3, 0)
    by_length = longest_first(order, lengths, rows_per_step)
    for start in range(0, len(order), rows_per_step):
        step = by_length[start : start + rows_per_step]
        assert Counter(step) == Counter(order[start : start + rows_per_step])
        assert [lengths[row] for row in step] == sorted(lengths[row] for row in step)[::-1]


@given(batch=st.integers(1, 200), limit=st.integers(1, 64))
def test_micro_batches_divide_the_batch(batch: int, limit: int) -> None:
    micro = micro_batches(batch, limit)
    assert micro.size * micro.accumulation == batch
    assert micro.size <= limit


def test_micro_batches_share_processes() -> None:
    assert micro_batches(96, 32, processes=2).accumulation == 2
    with pytest.raises(UserError, match="cannot be shared"):
        micro_batches(97, 32, processes=2)


def test_epochs_round_up_to_whole_steps() -> None:
    assert total_steps(SFTConfig(epochs=3.0), rows=100, rows_per_step=16) == 19
    assert total_steps(SFTConfig(steps=7), rows=100, rows_per_step=16) == 7


def _rows(rewards: list[float], flat: float = 0.0) -> list[dict[str, Any]]:
    diagnostics = {"copied": None, "compression": None, "clipped": None}
    return [
        {"reward": r, "reward_std": 0.5, "zero_std_groups": flat} | diagnostics for r in rewards
    ]


def test_three_flat_steps_raise_the_alarm() -> None:
    assert alarms(_rows([0.0] * 5, flat=1.0))["alarm_zero_variance"] == 1
    assert alarms(_rows([0.0] * 2, flat=1.0))["alarm_zero_variance"] == 0
    assert alarms(_rows([0.0] * 5, 1.0)[:4] + _rows([0.0], 0.9))["alarm_zero_variance"] == 0


def test_a_falling_reward_raises_the_alarm() -> None:
    falling = [-0.1 * step for step in range(20)]
    assert alarms(_rows(falling))["alarm_reward_falling"] == 1
    assert alarms(_rows(falling[::-1]))["alarm_reward_falling"] == 0
    assert alarms(_rows([-0.01 * step for step in range(20)]))["alarm_reward_falling"] == 0
    assert alarms(_rows(falling[:19]))["alarm_reward_falling"] == 0  # too early to say


@pytest.mark.parametrize(
    ("column", "limit", "alarm"),
    [
        ("copied", COPIED_ALARM, "alarm_copied"),
        ("compression", COMPRESSION_ALARM, "alarm_repetition"),
        ("clipped", CLIPPED_ALARM, "alarm_over_length"),
    ],
)
def test_diagnostics_are_judged_by_the_mean_of_the_last_steps(
    column: str, limit: float, alarm: str
) -> None:
    def raised(values: list[float | None]) -> float:
        rows = _rows([0.0] * len(values))
        return alarms([row | {column: value} for row, value in zip(rows, values, strict=True)])[
            alarm
        ]

    assert raised([limit * 1.1]) == 1
    assert raised([limit * 0.9] * 30) == 0
    assert raised([limit * 1.1] * 10) == raised([0.0] * 20 + [limit * 1.1] * 10) == 1
    assert raised([limit * 1.1] * 20 + [0.0] * 10) == 0  # that was long ago
    assert raised([limit * 1.1, None, None]) == 1  # over what has a value
    assert raised([None] * 12) == 0
