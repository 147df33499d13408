"""Checkpoints in a workspace, for an exact resume in any number of processes, sharded or not.

A checkpoint holds the weights in training, optimiser, schedule, counters, the rows of `train_steps`
and `rollouts`, and what a trainer keeps beside its model (a reference model). It holds no random
states: each step begins with its own seed. Torch reads it with `weights_only=True`; no artifact
contains any of it.

`ResumableTrainer` overrides private methods of transformers' Trainer, which has no hooks for them;
each says why.
"""

from __future__ import annotations

import json
import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, set_seed
from huggingface_hub import save_torch_state_dict
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rlt_core import processes
from rlt_core.config import StageResources
from rlt_core.environment import disk_space
from rlt_core.errors import Stopped
from rlt_core.models import compute_dtype, load_model, load_tokenizer, save_model, saved_dtype
from rlt_core.rows import read_rows, table_files, write_rows
from rlt_core.sql.schemas import TRAIN_STEPS
from rlt_core.store import Workspace
from rlt_core.training import sharding
from rlt_core.training.data_order import KEPT_CHECKPOINTS
from rlt_core.training.metrics import StepRecorder
from rlt_core.training.tracking import Tracker

GROUP = "checkpoints"
ROWS = "train_steps.json"
EXTRA = "reference.safetensors"


class _Seed(TrainerCallback):
    """Seeds every step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step's random numbers (dropout) depend on the seed, the step and the process. Saved
        random states would have to come from every machine, and fit no other process count."""
        names = [args.seed, state.global_step, processes.rank()]
        set_seed(int(np.random.SeedSequence(names).generate_state(1)[0]))


class ResumableTrainer(Trainer):
    """Mix-in for a TRL trainer: shards the model where `resources` say so, and trains to the end
    from wherever the workspace is."""

    _work: Workspace
    _recorder: StepRecorder

    def __init__(self, *, resources: StageResources, **arguments: Any) -> None:
        self._resources = resources
        super().__init__(**arguments)

    def run(self, work: Workspace, recorder: StepRecorder) -> None:
        """Train the steps that are left. Raises Stopped once stopped and checkpointed."""
        self._work, self._recorder = work, recorder
        self.remove_callback(PrinterCallback)
        self.add_callback(recorder)
        self.add_callback(_Seed())
        tracked = self._resources.tracking != "none" and self.accelerator.is_main_process
        tracker = Tracker(recorder) if tracked else None
        if tracker:
            self.add_callback(tracker)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of TRL's calls into transformers
                self.train(resume_from_checkpoint=self._latest())
        finally:
            if tracker:
                tracker.close(self.args, self.state, self.control)
        if recorder.stopped:
            raise Stopped(f"stopped after step {self.state.global_step} of {self.state.max_steps}")

    def finish(self, start: Path, out: Path, dtype: str) -> None:
        """Write `out/train_steps.parquet` and the model, adapters merged in, as `out/model/`, with
        the tokenizer of `start`, the folder trained from."""
        model: Any = self.accelerator.unwrap_model(self.model)
        adapted, sharded = isinstance(model, PeftModel), sharding.is_sharded(model)
        weights = sharding.gathered(sharding.trained(model)) if sharded else {}
        if self.accelerator.is_main_process:
            if sharded:
                whole: Any = load_model(start, compute_dtype(dtype, self._resources.device))
                whole.config = model.config
                model = get_peft_model(whole, model.active_peft_config) if adapted else whole
                sharding.load_weights(sharding.trained(model), weights)
            plain = model.merge_and_unload() if adapted else model
            plain.config.use_cache = True  # Trainer turns it off; generation needs it
            save_model(plain.to(getattr(torch, dtype)), load_tokenizer(start), out / "model")
            write_rows(out / "train_steps.parquet", "train_steps", self._recorder.rows)
        self.accelerator.wait_for_everyone()

    def extra_state(self) -> dict[str, Tensor]:
        """Return what this trainer changes beside model and optimiser, by name."""
        return {}

    # ------------------------------------------------------------ sharding
    @property
    def _model(self) -> Any:
        assert self.model is not None
        return self.model

    def create_accelerator_and_postprocess(self) -> None:
        """Override: the model, with its adapters, must be sharded before Trainer uses it. And TRL
        loads the reference model next, which must keep the number format of its file, so that the
        processes of a machine share one copy in main memory (set earlier, TRL warns)."""
        super().create_accelerator_and_postprocess()
        args: Any = self.args
        args.model_init_kwargs = {"dtype": saved_dtype(Path(self._model.name_or_path))}
        if self._resources.sharding != "none":
            sharding.shard(self._model, self._resources, bool(self.args.bf16))
            # The model reduces its gradients itself: no DDP around it.
            self.accelerator.prepare_model = partial(  # type: ignore[method-assign]
                self.accelerator.prepare_model, device_placement=False, evaluation_mode=True
            )

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Override: a sharded model is in its place."""
        if not sharding.is_sharded(model):
            super()._move_model_to_device(model, device)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Override: Trainer would log the norm of this process's share."""
        return sharding.full(super()._get_grad_norm(model, grad_norm))

    # ------------------------------------------------------------ checkpoints
    def _weights(self) -> dict[str, Tensor]:
        """The tensors in training by the names that a checkpoint has for them."""
        tensors = sharding.trained(self._model)
        return {name.replace(".default.", "."): each for name, each in tensors.items()}

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Override: commits a checkpoint in the workspace, gathered where the training is sharded,
        and removes old ones. Trainer's would be in another folder, of one process's share."""
        step, main = self.state.global_step, self.accelerator.is_main_process
        box = [self._work.begin(GROUP, f"{step:08d}") if main else None]
        part = broadcast_object_list(box)[0]
        assert part is not None
        try:
            with disk_space(part, self._checkpoint_bytes()):
                self._write(part / f"{PREFIX_CHECKPOINT_DIR}-{step}")
                self.accelerator.wait_for_everyone()
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)  # the last whole one stays
            raise
        if main:
            self._work.commit(GROUP, f"{step:08d}", step=step)
            for name in self._work.parts(GROUP)[:-KEPT_CHECKPOINTS]:
                self._work.remove(GROUP, name)

    def _write(self, folder: Path) -> None:
        """Write a checkpoint in the first process; one part at a time is whole in its memory."""
        assert self.optimizer is not None and self.lr_scheduler is not None
        main = self.accelerator.is_main_process
        weights = sharding.gathered(self._weights())
        if main:
            folder.mkdir()
            save_torch_state_dict(weights, folder)
        del weights
        if (extra := sharding.gathered(self.extra_state())) and main:
            save_file(extra, folder / EXTRA)
        del extra
        optimizer = sharding.gathered(self.optimizer.state_dict())
        if main:
            torch.save(optimizer, folder / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            (folder / ROWS).write_text(json.dumps(self._recorder.rows))
            if rollouts := self._recorder.rollouts:
                write_rows(folder / "rollouts.parquet", "rollouts", rollouts)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """Override: reads what `_write` wrote, each process its share."""
        folder = Path(resume_from_checkpoint)
        sharding.load_weights(self._weights(), sharding.read_weights(folder))
        if extra := self.extra_state():
            sharding.load_weights(extra, load_file(folder / EXTRA))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Override: as `_load_from_checkpoint`."""
        if checkpoint is None:
            return
        assert self.optimizer is not None and self.lr_scheduler is not None
        optimizer = torch.load(Path(checkpoint) / OPTIMIZER_NAME, weights_only=True, mmap=True)
        sharding.load_optimizer(self.optimizer, optimizer)
        self.lr_scheduler.load_state_dict(
            torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
        )

    def _latest(self) -> str | None:
        """The newest checkpoint, if there is one; its rows are read into the recorder."""
        parts = self._work.parts(GROUP)
        if not parts:
            return None
        (folder,) = self._work.path(GROUP, parts[-1]).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        rows = json.loads((folder / ROWS).read_text())
        self._recorder.rows[:] = [dict.fromkeys(TRAIN_STEPS.names) | row for row in rows]
        if table_files(folder, "rollouts"):
            self._recorder.rollouts[:] = read_rows(folder, "rollouts")
        return str(folder)

    def _checkpoint_bytes(self) -> int:
        """Weights in training and the optimiser's state, of all processes."""
        assert self.optimizer is not None
        states = [each for state in self.optimizer.state.values() for each in state.values()]
        tensors = [*self._weights().values(), *filter(torch.is_tensor, states)]
        return sum(each.numel() * each.element_size() for each in tensors)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Override: each step has its own seed."""

    def _send_telemetry(self) -> None:
        """Override: nothing leaves this machine."""
