"""One row of `train_steps` an optimiser step, and the alarms that are read from the rows."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlt_core.progress import Progress
from rlt_core.reward.diagnostics import guard_alarms
from rlt_core.sql.schemas import TRAIN_STEPS

Row = dict[str, Any]
ZERO_VARIANCE_STEPS = 3
WINDOW = 10
"""Steps at either end that the reward's fall and the guards look at."""
GUARDED = ("copied", "compression", "clipped")


def alarms(rows: Sequence[Row]) -> dict[str, float]:
    """Signs that GRPO has collapsed or learns something else than to explain, 1.0 or 0.0 each.

    `alarm_zero_variance`: for 3 steps on end, no group had two different rewards, so nothing is
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
    watched = {name: known_mean(rows[-WINDOW:], name) for name in GUARDED}
    return {
        "alarm_zero_variance": float(flat),
        "alarm_reward_falling": float(falling),
        **guard_alarms(**watched),
    }


def mean_of(rows: Sequence[Row], column: str) -> float:
    """Mean of a column over rows."""
    return sum(row[column] for row in rows) / len(rows)


def known_mean(rows: Sequence[Row], column: str) -> float | None:
    """Mean of a column over the rows that have it."""
    known = [row[column] for row in rows if row[column] is not None]
    return sum(known) / len(known) if known else None


class StepRecorder(TrainerCallback):
    """Writes rows, reports progress, says when to checkpoint and when to stop."""

    def __init__(
        self,
        stage: str,
        seed: int,
        total: int,
        epochs_per_step: float,
        checkpoint_every: int,
        progress: Progress,
    ) -> None:
        self.rows: list[Row] = []
        self.parts: dict[str, float | None] = {}
        """Columns of the current step that the trainer fills in (the reward and its parts)."""
        self.stopped = False
        """Training ended early because somebody asked for it."""
        self._ids = {"stage": stage, "seed": seed}
        self._total, self._epochs_per_step = total, epochs_per_step
        self._checkpoint_every, self._progress = checkpoint_every, progress
        self._tokens_seen = 0
        self._started = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._tokens_seen = int(state.num_input_tokens_seen)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._started = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step < self._total and _everywhere(self._progress.should_stop()):
            self.stopped = control.should_training_stop = True
        due = state.global_step % self._checkpoint_every == 0
        control.should_save = due or self.stopped

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "learning_rate" not in logs:  # the summary at the end of training
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
        row |= self._ids | self.parts
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


def _everywhere(wish: bool) -> bool:
    """The main process's wish, in every process: they must stop at the same step."""
    return bool(broadcast_object_list([wish])[0])
