"""How long a training is, which rows each step sees, and how a step is cut into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlt_core.config import GRPOConfig, SFTConfig
from rlt_core.errors import UserError

KEPT_CHECKPOINTS = 2
"""Of a training under way, beside one in the making."""


@dataclass(frozen=True)
class MicroBatches:
    """A step's batch = `size` sequences x `accumulation` passes x processes."""

    size: int
    accumulation: int


def total_steps(config: SFTConfig | GRPOConfig, rows: int, rows_per_step: int) -> int:
    """Optimiser steps: as many as asked for, or enough to see every row `epochs` times."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None  # the config holds exactly one of the two
    return math.ceil(config.epochs * rows / rows_per_step)


def data_order(rows: int, rows_per_step: int, steps: int, seed: int) -> list[int]:
    """Row of every place in the training: one permutation an epoch, end to end.

    Every step is full: the last one of an epoch goes on with rows of the next. The order is a
    function of the seed and the epoch alone, so that a resumed run meets the same rows.
    """
    needed = rows_per_step * steps
    epochs = math.ceil(needed / rows)
    orders = [np.random.default_rng([seed, epoch]).permutation(rows) for epoch in range(epochs)]
    return [int(row) for row in np.concatenate(orders)[:needed]]


def longest_first(order: Sequence[int], lengths: Sequence[int], rows_per_step: int) -> list[int]:
    """The same steps, rows sorted by length inside each, so that micro-batches pad little."""
    sorted_order: list[int] = []
    for start in range(0, len(order), rows_per_step):
        step = order[start : start + rows_per_step]
        sorted_order += sorted(step, key=lambda row: -lengths[row])
    return sorted_order


def micro_batches(batch_size: int, limit: int, processes: int = 1) -> MicroBatches:
    """The largest micro-batch of at most `limit` sequences that divides a process's share.

    Equal micro-batches make the accumulated gradient that of the whole batch.
    """
    share, rest = divmod(batch_size, processes)
    if rest:
        raise UserError(
            f"a batch of {batch_size} cannot be shared by {processes} processes; change "
            "resources.processes or the batch size"
        )
    size = next(size for size in range(min(limit, share), 0, -1) if share % size == 0)
    return MicroBatches(size, share // size)
