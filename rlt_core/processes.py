"""The processes that share a node's work: one alone, or the ones that torchrun started."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

from rlt_core.config import StageResources
from rlt_core.errors import UserError

if TYPE_CHECKING:
    from accelerate import PartialState

WAIT = timedelta(days=1)
"""How long processes wait for each other, while the first one stores a checkpoint or one samples a
long completion; torch's default on GPUs is ten minutes. `tasks.distributed` notices lost ones."""


def rank() -> int:
    """Rank of this process; 0 writes the results of all."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """Number of processes on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def of_this_machine() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def be_alone() -> None:
    """Drop the rank that another launcher set in the environment (a training operator, a Slurm
    step): this process shares its work with none."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)


def require_gpus(resources: StageResources, needed: int) -> None:
    """Raise UserError if a machine with GPUs has fewer than needed."""
    from rlt_core.models import gpus, pick_device

    if pick_device(resources.device) == "cuda" and gpus() < needed:
        raise UserError(
            f"resources.processes={resources.processes} and resources.tensor_parallel="
            f"{resources.tensor_parallel} need {needed} GPUs, and this machine shows {gpus()}; "
            "lower one of them"
        )


def take_gpus(resources: StageResources, each: int) -> None:
    """Let this process, and a vLLM engine that it starts, see only its own GPUs, `each` in number;
    call it before CUDA is used. Transformers' Trainer would put a batch on every GPU it sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if resources.device == "cpu" or visible == "":
        return
    ids = visible.split(",") if visible else [str(i) for i in range(of_this_machine() * each)]
    first = int(os.environ.get("LOCAL_RANK", "0")) * each
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(ids[first : first + each])
    if "LOCAL_RANK" in os.environ:
        os.environ["LOCAL_RANK"] = "0"


def join(resources: StageResources) -> PartialState:
    """Initialize torch.distributed with the other processes."""
    from accelerate import PartialState

    from rlt_core.models import pick_device

    return PartialState(cpu=pick_device(resources.device) == "cpu", timeout=WAIT)


def wait_for_all() -> None:
    """Barrier for all processes, which have called `join`."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
