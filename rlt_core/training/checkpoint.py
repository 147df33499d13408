"""Checkpoints in a workspace with all that an exact resume needs.

Trainer saves weights, optimiser, schedule and counters; the rows of `train_steps` and whatever a
trainer keeps beside its model (a reference model) travel with them. Random states do not: each
step begins with its own seed. Torch reads them with `weights_only=True`; nothing of a checkpoint
enters an artifact.
"""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rlt_core import processes
from rlt_core.config import StageResources
from rlt_core.environment import disk_space
from rlt_core.errors import Stopped
from rlt_core.rows import write_rows
from rlt_core.sql.schemas import TRAIN_STEPS
from rlt_core.store import Workspace
from rlt_core.training import sharding
from rlt_core.training.data_order import KEPT_CHECKPOINTS
from rlt_core.training.memory_probe import LongestFirst
from rlt_core.training.metrics import StepRecorder
from rlt_core.training.policy import save_policy, unsharded

GROUP = "checkpoints"
ROWS = "train_steps.json"


class ShardedTrainer(Trainer):
    """Mix-in that shards the model where `resources` say so, and writes the checkpoints of an
    unsharded one: any number of processes, sharded or not, can go on from them."""

    def __init__(self, *, resources: StageResources, **arguments: Any) -> None:
        self._resources = resources
        super().__init__(**arguments)

    def create_accelerator_and_postprocess(self) -> None:
        """Trainer's first act with its model, to which adapters have been added by now."""
        super().create_accelerator_and_postprocess()
        if self._resources.sharding != "none":
            sharding.shard(self._model, self._resources, bool(self.args.bf16))
            # It reduces its gradients itself: no DDP around it.
            self.accelerator.prepare_model = partial(  # type: ignore[method-assign]
                self.accelerator.prepare_model, device_placement=False, evaluation_mode=True
            )

    @property
    def _model(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not sharding.is_sharded(model):
            super()._move_model_to_device(model, device)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return sharding.full(super()._get_grad_norm(model, grad_norm))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not sharding.is_sharded(self.model):
            super().save_model(output_dir, _internal_call)
            return
        weights = sharding.gathered(sharding.trained(self._model))
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if not sharding.is_sharded(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = sharding.read_weights(Path(resume_from_checkpoint))
        tensors = sharding.trained(self._model)  # files leave out the name of the adapter
        named = {name.replace(".default.", "."): each for name, each in tensors.items()}
        sharding.load_weights(named, saved)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not sharding.is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.optimizer is not None and self.lr_scheduler is not None
        state = sharding.gathered(self.optimizer.state_dict())
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not sharding.is_sharded(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        assert self.optimizer is not None and self.lr_scheduler is not None
        optimizer = torch.load(Path(checkpoint) / OPTIMIZER_NAME, weights_only=True, mmap=True)
        sharding.load_optimizer(self.optimizer, optimizer)
        self.lr_scheduler.load_state_dict(
            torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
        )


class StepSeed(TrainerCallback):
    """What a step draws (dropout) follows from the seed, the step and the process. Saved random
    states would have to come from every machine, and fit no other number of processes."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        names = [args.seed, state.global_step, processes.rank()]
        set_seed(int(np.random.SeedSequence(names).generate_state(1)[0]))


class ResumableTrainer(ShardedTrainer):
    """Mix-in for a TRL trainer: `run` trains to the end from wherever the workspace stands."""

    _work: Workspace
    _recorder: StepRecorder
    _part: Path | None = None

    def run(self, work: Workspace, recorder: StepRecorder) -> None:
        """Train the steps that are left. Raises Stopped once stopped and checkpointed."""
        self._work, self._recorder = work, recorder
        self.remove_callback(PrinterCallback)
        self.add_callback(recorder)
        self.add_callback(StepSeed())
        self.add_callback(LongestFirst(self, self.longest_loss))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of TRL's calls into transformers
            self.train(resume_from_checkpoint=self._latest())
        if recorder.stopped:
            raise Stopped(f"stopped after step {self.state.global_step} of {self.state.max_steps}")

    def finish(self, start: Path, out: Path, dtype: str) -> None:
        """Write `out/model/` and `out/train_steps.parquet`; `start`: the folder trained from."""
        model: Any = self.accelerator.unwrap_model(self.model)
        sharded = sharding.is_sharded(model)
        weights = sharding.gathered(sharding.trained(model)) if sharded else {}
        if self.accelerator.is_main_process:
            if sharded:
                model = unsharded(model, start, dtype)
                sharding.load_weights(sharding.trained(model), weights)
            save_policy(model, start, out / "model", dtype)
            write_rows(out / "train_steps.parquet", "train_steps", self._recorder.rows)
        self.accelerator.wait_for_everyone()

    def longest_loss(self, model: nn.Module) -> Tensor:
        """A loss of a micro-batch of the longest sequences that may come; see `longest_first`."""
        raise NotImplementedError

    def save_extra(self, folder: Path) -> None:
        """Write what this trainer keeps beside model and optimiser; called in every process."""

    def load_extra(self, folder: Path) -> None:
        """Take up what `save_extra` wrote."""

    def _latest(self) -> str | None:
        parts = self._work.parts(GROUP)
        if not parts:
            return None
        (folder,) = self._work.path(GROUP, parts[-1]).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        rows = json.loads((folder / ROWS).read_text())
        self._recorder.rows[:] = [dict.fromkeys(TRAIN_STEPS.names) | row for row in rows]
        self.load_extra(folder)
        return str(folder)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._part or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        self._part = self._begin(f"{step:08d}")
        folder = self._part / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        with disk_space(self._part, self._checkpoint_bytes()):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            self.save_extra(folder)
        if self.accelerator.is_main_process:
            (folder / "training_args.bin").unlink()
            (folder / ROWS).write_text(json.dumps(self._recorder.rows))
            self._work.commit(GROUP, f"{step:08d}", step=step)
            for name in self._work.parts(GROUP)[:-KEPT_CHECKPOINTS]:
                self._work.remove(GROUP, name)
        self._part = None

    def _checkpoint_bytes(self) -> int:
        """Weights in training and the optimiser's state, of all processes."""
        assert self.optimizer is not None
        states = [each for state in self.optimizer.state.values() for each in state.values()]
        tensors = [*sharding.trained(self._model).values(), *filter(torch.is_tensor, states)]
        return sum(each.numel() * each.element_size() for each in tensors)

    def _save_rng_state(self, output_dir: str) -> None:
        """None to save: see `StepSeed`."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """See `StepSeed`."""

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
