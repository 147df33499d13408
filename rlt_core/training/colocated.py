"""vLLM in the trainer's processes, one engine per process: TRL's colocate mode, with a seed per
completion. Separate from `rollout`, since importing this imports vLLM."""

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
"""Variables that torchrun sets for its processes."""
_KEPT: list[VLLMGeneration] = []
"""Engines that were closed, but must live until the process ends."""


class ColocatedVLLM(VLLMEngine):
    """Samples from a policy in training, with its weights at each call of `generate`.

    TRL creates the engine, lets it sleep on a GPU between calls (CUDA graphs and small buffers
    stay) and passes it the weights, which `weights()` yields as (name in a checkpoint, whole
    tensor). TRL's `generate` has one seed for all completions; ours has one per completion.
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
            self._trl = _PolicyGeneration(
                policy,
                accelerator,
                processing_class=cast(Any, None),  # ids in, ids out
                mode="colocate",
                gpu_memory_utilization=resources.vllm_memory,
                max_model_length=FITTING,
                enable_sleep_mode=self._sleeps,
            )
        self._trl.weights = weights
        self._llm = self._trl.llm

    def close(self) -> None:
        """Keep the engine, asleep, until this process ends: closing it would destroy the process
        group that it shares with the trainer."""
        _KEPT.append(self._trl)
        del self._llm, self._trl

    def generate(self, *args: Any, **options: Any) -> list[list[Completion]]:
        """See `Engine.generate`; from the current weights."""
        with self._awake():
            return super().generate(*args, **options)

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """Update the weights and wake the engine (RL with
        https://docs.vllm.ai/en/latest/features/sleep_mode/)."""
        self._trl.sync_weights()
        if self._sleeps:
            torch.cuda.empty_cache()
            self._llm.wake_up(tags=["kv_cache"])
        yield
        if self._sleeps:
            self._llm.sleep(level=2)


class _PolicyGeneration(VLLMGeneration):
    """TRL's engine; overrides where its weights come from, since TRL knows neither our sharding nor
    our adapters, and how a CPU takes them."""

    weights: Callable[[], Iterable[tuple[str, Tensor]]]

    def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.weights()

    def sync_weights(self) -> None:
        """On a CPU, vLLM has packed the weights and dropped the tensors that TRL would write to."""
        if self.enable_sleep_mode:
            super().sync_weights()
            return
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self.weights()})
        self.llm.apply_model(_pack_head)
        self.llm.reset_prefix_cache()


@contextmanager
def _engines_of(**options: Any) -> Iterator[None]:
    """Add options to the engine that TRL creates, and restore the environment that it changes.

    TRL passes no dtype: vLLM would use the folder's, and never float32. The engine starts with
    random weights, so that missing updates show at once."""
    theirs, variables = vllm_generation.LLM, {name: os.environ.get(name) for name in LAUNCHERS}
    vllm_generation.LLM = partial(theirs, load_format="dummy", **BARE, **options)
    try:
        yield
    finally:
        vllm_generation.LLM = theirs
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _pack_head(model: nn.Module) -> None:
    """Pack the head again: reloading updates each layer's packed weights, except those of a head
    that shares the embedding's."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)
