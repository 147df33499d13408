"""The processes that share a node's work: this one alone, or those that torchrun started."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

from rlt_core.config import StageResources
from rlt_core.errors import UserError

if TYPE_CHECKING:
    from accelerate import PartialState

WAIT = timedelta(days=1)
"""For each other: while the first one stores a checkpoint, or one draws a long completion. Torch's
own limit on GPUs is ten minutes. A lost process is noticed elsewhere (`tasks.distributed`)."""


def rank() -> int:
    """Place of this process; 0 is the one that writes what all have made."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many they are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def of_this_machine() -> int:
    """How many of them this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def be_alone() -> None:
    """Forget what somebody else's launcher has said (a training operator, a Slurm step): this
    process shares its work with nobody."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)


def require_gpus(resources: StageResources, needed: int) -> None:
    """Raises UserError if a machine with GPUs has fewer than needed."""
    from rlt_core.models import gpus, pick_device

    if pick_device(resources.device) == "cuda" and gpus() < needed:
        raise UserError(
            f"resources.processes={resources.processes} and resources.tensor_parallel="
            f"{resources.tensor_parallel} need {needed} GPUs, and this machine shows {gpus()}; "
            "lower one of them"
        )


def take_gpus(resources: StageResources, each: int) -> None:
    """Hide all GPUs but its own, `each` of every process, from this process and what it starts (a
    vLLM engine), before CUDA is used. Transformers' Trainer would put a batch on each that it
    sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if resources.device == "cpu" or visible == "":
        return
    ids = visible.split(",") if visible else [str(i) for i in range(of_this_machine() * each)]
    first = int(os.environ.get("LOCAL_RANK", "0")) * each
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(ids[first : first + each])
    if "LOCAL_RANK" in os.environ:
        os.environ["LOCAL_RANK"] = "0"


def join(resources: StageResources) -> PartialState:
    """Meet the others."""
    from accelerate import PartialState

    from rlt_core.models import pick_device

    return PartialState(cpu=pick_device(resources.device) == "cpu", timeout=WAIT)


def wait_for_all() -> None:
    """Return once every process is here; they have met (`join`)."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
