"""vLLM inside the trainer's processes, an engine each: TRL's colocate mode, with a seed for every
completion."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration

from rlt_core.config import DType, StageResources
from rlt_core.generation.engine import Completion
from rlt_core.generation.vllm import BARE, FITTING, VLLMEngine, require_vllm

LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun says to its processes."""
_KEPT: list[VLLMGeneration] = []
"""Engines that must outlive their use."""


class ColocatedVLLM(VLLMEngine):
    """Samples from a policy in training, as it is at each call of `generate`.

    TRL makes the engine, puts it to sleep on a GPU between calls (CUDA graphs and small buffers
    stay) and gives it the weights, which `weights()` yields as (name in a checkpoint, whole
    tensor). Its own `generate` has one seed for all completions; ours has one each.
    `policy.name_or_path` is the model folder that it started from. Needs
    `resources.tensor_parallel` 1. Raises UserError if vLLM is not installed.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        accelerator: Accelerator,
        dtype: DType,
        resources: StageResources,
        weights: Callable[[], Iterable[tuple[str, Tensor]]],
    ) -> None:
        require_vllm()
        self._sleeps = accelerator.device.type == "cuda"
        # Compiled code would keep the CPU's packed weights.
        with _engines_of(dtype=dtype, enforce_eager=not self._sleeps):
            self._trl = _Generation(policy, accelerator, self._sleeps, resources, weights)
        self._llm = self._trl.llm

    def close(self) -> None:
        """Leave the engine, asleep, until this process ends: vLLM ends with an engine the process
        group that it shares with the trainer."""
        _KEPT.append(self._trl)
        del self._llm, self._trl

    def generate(self, *args: Any, **options: Any) -> list[list[Completion]]:
        """See `Engine.generate`; from the weights as they are now."""
        with self._awake():
            return super().generate(*args, **options)

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """As https://docs.vllm.ai/en/latest/features/sleep_mode/ updates weights in RL."""
        self._trl.sync_weights()
        if self._sleeps:
            torch.cuda.empty_cache()
            self._llm.wake_up(tags=["kv_cache"])
        yield
        if self._sleeps:
            self._llm.sleep(level=2)


class _Generation(VLLMGeneration):
    """TRL's, which takes weights from where it is told, sharded and adapted our way."""

    def __init__(
        self,
        policy: PreTrainedModel,
        accelerator: Accelerator,
        sleeps: bool,
        resources: StageResources,
        weights: Callable[[], Iterable[tuple[str, Tensor]]],
    ) -> None:
        self._weights = weights
        super().__init__(
            policy,
            accelerator,
            processing_class=cast(Any, None),  # ids in, ids out
            mode="colocate",
            gpu_memory_utilization=resources.vllm_memory,
            max_model_length=FITTING,
            enable_sleep_mode=sleeps,
        )

    def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._weights()

    def sync_weights(self) -> None:
        """TRL's, but on a CPU: there vLLM has packed the weights and let go of what TRL would write
        to."""
        if self.enable_sleep_mode:
            super().sync_weights()
            return
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._weights()})
        self.llm.apply_model(_pack_head)
        self.llm.reset_prefix_cache()


@contextmanager
def _engines_of(**options: Any) -> Iterator[None]:
    """TRL names no dtype to vLLM, which would take the folder's, and never float32. Random weights
    at first: should none arrive, it would be seen at once. What TRL tells vLLM through the
    environment is not for the processes that start later."""
    theirs, told = vllm_generation.LLM, {name: os.environ.get(name) for name in LAUNCHERS}
    vllm_generation.LLM = partial(theirs, load_format="dummy", **BARE, **options)
    try:
        yield
    finally:
        vllm_generation.LLM = theirs
        for name, value in told.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _pack_head(model: nn.Module) -> None:
    """Reloading renews each layer's packed weights, but not those of a head that shares the
    embedding's."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)
