"""Main memory and disk of a machine that a node needs, and those that a machine has.

Counted from `rlt_core.training.checkpoint` and `rlt_core.training.sharding`; P parameters.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

from rlt_core.config import GRPOConfig, SFTConfig, StageResources
from rlt_core.estimate.memory import GIB
from rlt_core.estimate.shapes import Shape
from rlt_core.store.files import listed_below
from rlt_core.training.data_order import KEPT_CHECKPOINTS

PROCESS = 2 * GIB
"""Main memory of a process with torch, CUDA and the libraries, beside tensors. An assumption."""
CERTAIN = ("weights", "adapters", "optimizer", "gradients", "reference", "reward student")
"""Parts that a process holds however short its sequences are."""


@dataclass(frozen=True)
class TrainingFiles:
    """Bytes that a training keeps on disk and gathers in main memory."""

    checkpoint: int = 0
    """Bytes of one checkpoint: float32 weights, AdamW's two moments, and the reference model where
    it is synced; under LoRA of adapters alone."""
    count: int = 0
    """Checkpoints on disk at once: those that are kept, and the one that is being written."""
    model: int = 0
    """Bytes of the trained model as it is saved."""
    gathered: int = 0
    """In the main memory of the first machine, for a checkpoint or the saved model."""

    @property
    def disk(self) -> int:
        """Bytes on disk at most: all checkpoints, or those that are kept beside the model."""
        kept = min(self.count, KEPT_CHECKPOINTS)
        return max(self.count * self.checkpoint, kept * self.checkpoint + self.model)


def training_files(
    shape: Shape, config: SFTConfig | GRPOConfig, steps: int, resources: StageResources
) -> TrainingFiles:
    """Return the files of a training of this many steps.

    Sharded, the first process gathers weights (4 P), then both moments (8 P); at the end the
    weights again beside the model to save. Not sharded, on a GPU, it copies weights to main memory
    to save them, moments one by one.
    """
    trained = shape.lora(config.lora.rank) if config.lora else shape.parameters
    synced = isinstance(config, GRPOConfig) and config.reference_sync and config.beta > 0
    model = (2 if config.dtype == "bfloat16" else 4) * shape.parameters
    sharded = max(8 * trained, 4 * trained + model)
    return TrainingFiles(
        checkpoint=12 * trained + (4 * shape.parameters if synced else 0),
        count=min(steps // resources.checkpoint_every_steps, KEPT_CHECKPOINTS + 1),
        model=model,
        gathered=max(4 * trained, model) if resources.sharding == "none" else sharded,
    )


@dataclass(frozen=True)
class Machine:
    """Bytes that a machine has; None: unknown."""

    memory: int | None = None
    disk: int | None = None
    """Free where the store is, or where files wait for a store elsewhere."""

    @classmethod
    def described(cls, resources: StageResources) -> Machine:
        """The machine that `resources` describe."""
        memory, disk = resources.host_gib, resources.disk_gb
        return cls(
            None if memory is None else int(memory * GIB), None if disk is None else int(disk * 1e9)
        )

    def or_else(self, other: Machine) -> Machine:
        """This machine, with what is unknown taken from another one."""
        return Machine(self.memory or other.memory, self.disk or other.disk)

    @classmethod
    def here(cls, folder: Path, unfinished: Collection[Path]) -> Machine:
        """This machine. What the folders of unfinished nodes hold already on the disk of `folder`
        counts as free."""
        while not folder.exists():
            folder = folder.parent
        there = sum(
            file.bytes or 0 for each in unfinished for file in listed_below(each, deep=True)
        )
        return cls(_memory(), shutil.disk_usage(folder).free + there)


def _memory() -> int:
    """Main memory of this machine, or the limit of the container."""
    limit = Path("/sys/fs/cgroup/memory.max")
    total: int = psutil.virtual_memory().total
    text = limit.read_text().strip() if limit.is_file() else "max"
    return total if text == "max" else min(total, int(text))
