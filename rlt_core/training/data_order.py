"""Which rows a training keeps and each step sees, how many steps, and their micro-batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlt_core.config import GRPOConfig, SFTConfig
from rlt_core.errors import UserError

if TYPE_CHECKING:
    from rlt_core.training.reward_function import Prompt

KEPT_CHECKPOINTS = 2
"""Checkpoints of a running training, beside the one being written."""


@dataclass(frozen=True)
class MicroBatches:
    """A step's batch = `size` sequences x `accumulation` passes x processes."""

    size: int
    accumulation: int


def total_steps(config: SFTConfig | GRPOConfig, rows: int, rows_per_step: int) -> int:
    """Return the optimiser steps: as configured, or enough to see every row `epochs` times."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None  # the config holds exactly one of the two
    return math.ceil(config.epochs * rows / rows_per_step)


def data_order(rows: int, rows_per_step: int, steps: int, seed: int) -> list[int]:
    """Return the row at every position of the training: one permutation per epoch, end to end.

    Every step is full: the last one of an epoch continues with rows of the next. The order depends
    on the seed and the epoch alone, so that a resumed run sees the same rows.
    """
    needed = rows_per_step * steps
    epochs = math.ceil(needed / rows)
    orders = [np.random.default_rng([seed, epoch]).permutation(rows) for epoch in range(epochs)]
    return [int(row) for row in np.concatenate(orders)[:needed]]


def longest_first(order: Sequence[int], lengths: Sequence[int], rows_per_step: int) -> list[int]:
    """Sort the rows of each step by length, so that micro-batches pad little."""
    sorted_order: list[int] = []
    for start in range(0, len(order), rows_per_step):
        step = order[start : start + rows_per_step]
        sorted_order += sorted(step, key=lambda row: -lengths[row])
    return sorted_order


def micro_batches(batch_size: int, limit: int, processes: int = 1) -> MicroBatches:
    """Return the largest micro-batch of at most `limit` sequences that divides a process's share.

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


def fitting_prompts(
    prompts: Sequence[Prompt], config: GRPOConfig, positions: int, stage: str
) -> list[Prompt]:
    """Return the prompts short enough to train on. Raises UserError if they do not fill a step, or
    if a completion might exceed the model's `positions`."""
    kept = [prompt for prompt in prompts if len(prompt.ids) <= config.max_prompt_tokens]
    if len(kept) < config.questions_per_step:
        raise UserError(
            f"{stage}: {len(kept)} questions ({len(prompts) - len(kept)} more exceed "
            f"max_prompt_tokens={config.max_prompt_tokens}) do not fill a step of "
            f"questions_per_step={config.questions_per_step}; lower it, or give more questions"
        )
    longest = max(kept, key=lambda prompt: len(prompt.ids))
    needed = len(longest.ids) + config.max_completion_tokens
    if needed > positions:
        raise UserError(
            f"{stage}: question {longest.question_id} has a prompt of {len(longest.ids)} tokens; "
            f"with max_completion_tokens={config.max_completion_tokens} that is {needed}, but the "
            f"model has {positions} positions; lower max_completion_tokens or max_prompt_tokens"
        )
    return kept
