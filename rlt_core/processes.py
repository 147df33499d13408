"""The processes that share a node's work: this one alone, or those that torchrun started."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rlt_core.config import StageResources

if TYPE_CHECKING:
    from accelerate import PartialState


def rank() -> int:
    """Place of this process; 0 is the one that writes what all have made."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many they are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(resources: StageResources) -> PartialState:
    """Meet the others, and take a GPU of one's own where there are some."""
    from accelerate import PartialState

    from rlt_core.models import pick_device

    return PartialState(cpu=pick_device(resources.device) == "cpu")


def wait_for_all() -> None:
    """Return once every process is here; they have met (`join`)."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
