"""Rows of `train_steps`, one per optimiser step, and the alarms that are computed from them.

Shapes: N completions (of a step in all processes where gathered), Q questions, G completions of
each, T tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather
from torch import Tensor
from transformers import TrainerCallback

from rlt_core.generation import Completion
from rlt_core.reward.diagnostics import explanation_alarms
from rlt_core.sql.schemas import TRAIN_STEPS
from rlt_core.training.context import TrainingContext
from rlt_core.training.reward_function import Rewards

Row = dict[str, Any]
ZERO_VARIANCE_STEPS = 3
WINDOW = 10
"""Steps at either end that the alarms compare."""
DIAGNOSTICS = ("copied", "compression", "clipped")


def alarms(rows: Sequence[Row]) -> dict[str, float]:
    """Signs that GRPO has collapsed or learns something other than to explain, 1.0 or 0.0 each.

    `alarm_zero_variance`: in the last 3 steps, no group had two different rewards, so nothing is
    learned. `alarm_reward_falling`: the mean reward of the last 10 steps is below that of the
    first 10 by more than the spread inside a group was then. `alarm_copied`, `alarm_repetition`,
    `alarm_over_length`: the means of the diagnostics (`rlt_core.reward.diagnostics`) over the last
    10 steps are too high.
    """
    last = [row["zero_std_groups"] for row in rows[-ZERO_VARIANCE_STEPS:]]
    flat = len(last) == ZERO_VARIANCE_STEPS and all(share == 1.0 for share in last)
    falling = False
    if len(rows) >= 2 * WINDOW:
        start, end = rows[:WINDOW], rows[-WINDOW:]
        falling = mean_of(end, "reward") < mean_of(start, "reward") - mean_of(start, "reward_std")
    means = {name: known_mean(rows[-WINDOW:], name) for name in DIAGNOSTICS}
    return {
        "alarm_zero_variance": float(flat),
        "alarm_reward_falling": float(falling),
        **explanation_alarms(**means),
    }


def mean_of(rows: Sequence[Row], column: str) -> float:
    """Mean of a column over rows."""
    return sum(row[column] for row in rows) / len(rows)


def known_mean(rows: Sequence[Row], column: str) -> float | None:
    """Mean of a column over the rows that have it."""
    known = [row[column] for row in rows if row[column] is not None]
    return sum(known) / len(known) if known else None


def grpo_metrics(rows: Sequence[Row], questions: int, dropped: int) -> dict[str, float]:
    """The metrics of a finished GRPO run."""
    seconds = sum(row["seconds"] for row in rows)
    metrics = {
        "questions": float(questions),
        "dropped_too_long": float(dropped),
        "steps": float(len(rows)),
        "reward_first": mean_of(rows[:5], "reward"),
        "reward_last": mean_of(rows[-5:], "reward"),
        "seconds_per_step": seconds / len(rows),
        "tokens_per_s": sum(row["tokens"] for row in rows) / seconds,
    }
    if rows[0]["grader_failed"] is not None:
        metrics["grader_failed"] = mean_of(rows, "grader_failed")
    return metrics | alarms(rows)


class StepRecorder(TrainerCallback):
    """Records rows, reports progress, decides when to checkpoint and when to stop."""

    def __init__(self, context: TrainingContext, total: int, epochs_per_step: float) -> None:
        self.rows: list[Row] = []
        self.rollouts: list[Row] = []
        """Rows of `rollouts`."""
        self.logged: Mapping[int, Sequence[int]] = {}
        """See `rollout_rows.choose`."""
        self.parts: dict[str, float | None] = {}
        """Columns of the current step that only GRPO has: the reward, its parts, the gap."""
        self.stopped = False
        """Training ended early after a stop request."""
        self.context = context
        self.ids = {"stage": context.stage, "seed": context.seed}
        self._total, self._epochs_per_step = total, epochs_per_step
        self._checkpoint_every = context.resources.checkpoint_every_steps
        self._progress = context.progress
        self._tokens_seen = 0
        self._started = 0.0

    def record_rewards(
        self, rollouts: Sequence[Completion], result: Rewards, group: int, accelerator: Accelerator
    ) -> None:
        """Fill in the columns of the step's rewards, from those of every process."""

        def gathered(values: Sequence[float]) -> Tensor:
            return gather(torch.tensor(values, dtype=torch.float32, device=accelerator.device))

        def mean_known(values: Sequence[float | None]) -> float | None:
            values_N = gathered([0.0 if value is None else float(value) for value in values])
            known_N = values_N[gathered([float(value is not None) for value in values]).bool()]
            return known_N.mean().item() if len(known_N) else None

        rewards_N = gathered(result.rewards)
        rewards_QG = rewards_N.view(-1, group)
        known = result.rows[0].keys() & set(TRAIN_STEPS.names) if result.rows else set()
        columns: dict[str, Sequence[float | None]] = {
            **{name: [row[name] for row in result.rows] for name in sorted(known)},
            "completion_tokens": [float(len(each.ids)) for each in rollouts],
            "clipped": [float(each.finish_reason == "length") for each in rollouts],
        }
        self.parts |= {name: mean_known(values) for name, values in columns.items()} | {
            "reward": rewards_N.mean().item(),
            "reward_std": rewards_QG.std(1).mean().item(),
            "zero_std_groups": (rewards_QG.amax(1) == rewards_QG.amin(1)).float().mean().item(),
        }

    def record_gap(self, gap_T: Tensor, accelerator: Accelerator) -> None:
        """Fill in how far the policy's log-probs of this process's tokens are from those that the
        engine recorded, over the tokens of all processes."""
        sums = [gap_T.new_tensor(len(gap_T)), gap_T.abs().sum(), gap_T.exp().sum()]
        tokens, absolute, ratios = accelerator.reduce(torch.stack(sums), "sum").tolist()
        self.parts |= {
            "rollout_gap_mean": absolute / tokens,
            "rollout_gap_max": gather(gap_T.abs().max()).max().item(),
            "rollout_ratio": ratios / tokens,
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._tokens_seen = int(state.num_input_tokens_seen)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step < self._total and _everywhere(self._progress.should_stop()):
            self.stopped = control.should_training_stop = True
        due = state.global_step % self._checkpoint_every == 0
        control.should_save = due or self.stopped

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "learning_rate" not in logs:  # the summary at the end of training
            return
        row = self._row(state.global_step, logs)
        for column in ("loss", "grad_norm"):
            if not math.isfinite(row[column]):
                raise RuntimeError(
                    f"{row['stage']}: {column} is {row[column]} at step {row['step']}"
                )
        self.rows.append(row)
        self._progress.report(row["step"], self._total, self._shown(row))

    def _row(self, step: int, logs: dict[str, float]) -> Row:
        seconds = time.perf_counter() - self._started
        tokens = int(logs["num_tokens"]) - self._tokens_seen
        self._tokens_seen += tokens
        row: Row = dict.fromkeys(TRAIN_STEPS.names)
        row |= self.ids | self.parts
        return row | {
            "step": step,
            "epoch": step * self._epochs_per_step,
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
            "grad_norm": logs["grad_norm"],
            "reference_kl": logs.get("kl"),
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_s": tokens / seconds,
        }

    def _shown(self, row: Row) -> dict[str, float]:
        metrics = {"loss": row["loss"], "tokens_per_s": row["tokens_per_s"]}
        if row["reward"] is not None:
            metrics |= {"reward": row["reward"]} | alarms(self.rows)
        return metrics


def _everywhere(stop: bool) -> bool:
    """The main process's answer, in every process: they must stop at the same step."""
    return bool(broadcast_object_list([stop])[0])
