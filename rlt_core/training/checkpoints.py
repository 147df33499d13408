"""Checkpoints in a workspace with all that an exact resume needs.

Trainer saves weights, optimiser, schedule, counters and random states; the rows of `train_steps`
and whatever a trainer keeps beside its model (a reference model) travel with them. Torch reads
them with `weights_only=True`; nothing of a checkpoint enters an artifact.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import PrinterCallback, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rlt_core.errors import Stopped
from rlt_core.rows import write_rows
from rlt_core.store import Workspace
from rlt_core.training.policy import save_policy
from rlt_core.training.steps import StepRecorder

GROUP = "checkpoints"
ROWS = "train_steps.json"
KEEP = 2


class ResumableTrainer(Trainer):
    """Mix-in for a TRL trainer: `run` trains to the end from wherever the workspace stands."""

    _work: Workspace
    _recorder: StepRecorder
    _part: Path | None = None

    def run(self, work: Workspace, recorder: StepRecorder) -> None:
        """Train the steps that are left. Raises Stopped once stopped and checkpointed."""
        self._work, self._recorder = work, recorder
        self.remove_callback(PrinterCallback)
        self.add_callback(recorder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of TRL's calls into transformers
            self.train(resume_from_checkpoint=self._latest())
        if recorder.stopped:
            raise Stopped(f"stopped after step {self.state.global_step} of {self.state.max_steps}")

    def finish(self, start: Path, out: Path, dtype: str) -> None:
        """Write `out/model/` and `out/train_steps.parquet`; `start`: the folder trained from."""
        if self.accelerator.is_main_process:
            save_policy(self.accelerator.unwrap_model(self.model), start, out / "model", dtype)
            write_rows(out / "train_steps.parquet", "train_steps", self._recorder.rows)
        self.accelerator.wait_for_everyone()

    def save_extra(self, folder: Path) -> None:
        """Write what this trainer keeps beside model and optimiser."""

    def load_extra(self, folder: Path) -> None:
        """Take up what `save_extra` wrote."""

    def _latest(self) -> str | None:
        parts = self._work.parts(GROUP)
        if not parts:
            return None
        (folder,) = self._work.path(GROUP, parts[-1]).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        self._recorder.rows[:] = json.loads((folder / ROWS).read_text())
        self.load_extra(folder)
        return str(folder)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._part or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        self._part = self._begin(f"{step:08d}")
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            folder = self._part / f"{PREFIX_CHECKPOINT_DIR}-{step}"
            (folder / "training_args.bin").unlink()
            (folder / ROWS).write_text(json.dumps(self._recorder.rows))
            self.save_extra(folder)
            self._work.commit(GROUP, f"{step:08d}", step=step)
            for name in self._work.parts(GROUP)[:-KEEP]:
                self._work.remove(GROUP, name)
        self._part = None

    def _begin(self, name: str) -> Path:
        """The same new folder in every process."""
        box = [self._work.begin(GROUP, name) if self.accelerator.is_main_process else None]
        folder = broadcast_object_list(box)[0]
        assert folder is not None
        return folder

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No model card in a checkpoint."""

    def _send_telemetry(self) -> None:
        """Nothing leaves this machine."""
