"""Engines that sample the completions of GRPO, always from the current policy.

The transformers engine runs the policy itself. A vLLM engine, in the trainer's process or behind a
server (TRL's colocate and server modes), receives the policy's weights before it samples, so it is
never a step behind, not even after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rlt_core import processes
from rlt_core.config import DType, Sampling, StageResources
from rlt_core.errors import UserError
from rlt_core.extensions import is_path
from rlt_core.generation.engine import ClosesItself, Completion, Engine, check_requests
from rlt_core.generation.hf import TransformersEngine
from rlt_core.models import pick_device
from rlt_core.progress import Progress
from rlt_core.training import sharding

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from trl.generation.vllm_client import VLLMClient

Weights = Callable[[], Iterable[tuple[str, Tensor]]]

REQUESTS_AT_ONCE = 64
"""Concurrent requests of one process to a server; TRL's client keeps as many connections."""
SERVE = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs "
    """--weight-transfer-config '{"backend": "nccl"}'"""
)


def open_rollouts(
    policy: PreTrainedModel, dtype: DType, resources: StageResources, accelerator: Accelerator
) -> Engine:
    """Open an engine that samples from the current policy.

    All processes of a training must open it and sample together. Raises UserError for an engine
    that is not available.
    """
    if is_path(resources.engine):
        raise UserError(
            f"resources.engine={resources.engine}: RL needs an engine whose weights it can "
            "replace; set resources.stages.teacher-grpo.engine and .student-grpo.engine to "
            "transformers or vllm"
        )
    if resources.engine == "transformers":
        return _Policy(policy, resources.tokens_per_batch, accelerator.autocast)
    weights = partial(whole_weights, policy, dtype)
    if resources.vllm_server is not None:
        return _Server(connect(resources.vllm_server), weights, pick_device(resources.device))
    if resources.tensor_parallel > 1:
        raise UserError(
            f"resources.tensor_parallel={resources.tensor_parallel}: a trainer's own vLLM engine "
            "samples on the trainer's GPU; set it to 1, or name a resources.vllm_server"
        )
    from rlt_core.training.colocated import ColocatedVLLM  # imports vLLM

    return ColocatedVLLM(policy, accelerator, dtype, resources, weights)


def require_context(engine: Engine, needed: int, resources: StageResources) -> None:
    """Raise UserError unless the engine has room for a prompt and completion of `needed` tokens."""
    if engine.context < needed:
        raise UserError(
            f"vLLM has room for {engine.context} tokens, and a prompt with its completion may "
            f"have {needed}; raise resources.vllm_memory={resources.vllm_memory} (or the server's "
            "--gpu-memory-utilization)"
        )


def whole_weights(policy: nn.Module, dtype: DType) -> Iterator[tuple[str, Tensor]]:
    """Yield a policy's weights by their names in a checkpoint, tied ones once, adapters merged in.

    One tensor at a time is gathered. All processes of a sharded policy must iterate together."""
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_" in name:
                continue
            layer_name, base, _ = name.rpartition(".base_layer.")
            tensor = sharding.full(parameter.detach())
            if base and name.endswith(".weight"):
                tensor = tensor + _adapters(policy.get_submodule(layer_name))
            name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            yield name, tensor.to(getattr(torch, dtype))


def _adapters(layer: nn.Module) -> Tensor:
    """Return what LoRA adds to a layer's weights (https://arxiv.org/abs/2106.09685, eq. 3)."""
    assert isinstance(layer, LoraLayer)
    [name] = layer.active_adapters
    first, second = (
        sharding.full(matrix.get_parameter(f"{name}.weight").detach())
        for matrix in (layer.lora_A, layer.lora_B)
    )
    return second @ first * layer.scaling[name]


class _Policy(TransformersEngine):
    """The policy in training; every process gathers it if it is sharded."""

    def __init__(
        self,
        policy: PreTrainedModel,
        tokens_per_batch: int,
        autocast: Callable[[], AbstractContextManager[None]],
    ) -> None:
        super().__init__(policy, tokens_per_batch)
        self._autocast = autocast

    def generate(self, *args: Any, **options: Any) -> list[list[Completion]]:
        """See `Engine.generate`."""
        with self._autocast(), sharding.whole(self.model):
            return super().generate(*args, **options)


class _Server(ClosesItself):
    """A `vllm serve` on GPUs of its own, which receives weights over NCCL (TRL's client)."""

    def __init__(self, client: VLLMClient, weights: Weights, device: str) -> None:
        """Raises UserError if weights cannot be sent from this device."""
        if processes.rank() == 0:
            try:
                client.init_communicator(device)
            except (RuntimeError, NotImplementedError) as error:
                raise UserError(
                    f"resources.vllm_server={client.base_url}: {error}; start it with: {SERVE}, or "
                    "empty the field for an engine in the trainer's process"
                ) from None
        self._client, self._weights = client, weights
        self.context = context_of(client)
        self._announced = [
            (name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
            for name, tensor in weights()
        ]

    def close(self) -> None:
        """Leave the process group that transfers weights."""
        self._client.close_communicator()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        stop_ids: Iterable[int],
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`; from the current weights. The first process sends them, once no
        other samples any more; the others help to gather what is sharded."""
        processes.wait_for_all()
        if processes.rank() == 0:
            self._client.update_named_params(self._announced, iter(self._weights()))
            self._client.reset_prefix_cache()
        else:
            for _ in self._weights():
                pass
        processes.wait_for_all()
        return sample_from_server(self._client, prompts, sampling, seeds, stop_ids)


def connect(url: str) -> VLLMClient:
    """Return TRL's client of a server. Raises UserError if no usable server answers, or if vLLM,
    which the client needs, is missing."""
    try:
        from trl.generation.vllm_client import VLLMClient

        client = VLLMClient(base_url=url)
        config = client.get_server_info()
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(f"resources.vllm_server={url}: {error}; start it with: {SERVE}") from None
    if config["model_config"]["logprobs_mode"] != "processed_logprobs":
        raise UserError(
            f"resources.vllm_server={url}: its log-probs are not those after temperature and "
            f"top-p; start it with: {SERVE}"
        )
    return client


def context_of(client: VLLMClient) -> int:
    """Return the tokens that a prompt and its completion may have together on the server."""
    return int(client.get_server_info()["model_config"]["max_model_len"])


def sample_from_server(
    client: VLLMClient,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[Sequence[int]],
    stop_ids: Iterable[int],
) -> list[list[Completion]]:
    """See `Engine.generate`. One request per completion, since a request has one seed."""
    context = context_of(client)
    check_requests(prompts, seeds, context)
    stop = sorted(stop_ids)

    def sample(request: tuple[Sequence[int], int]) -> Completion:
        prompt, seed = request
        reply = client.generate(
            [list(prompt)],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=min(sampling.max_tokens, context - len(prompt)),
            generation_kwargs={"seed": seed, "stop_token_ids": stop, "ignore_eos": True},
        )
        [ids], [logprobs] = reply["completion_ids"], reply["logprobs"]
        return Completion(
            ids=ids,
            finish_reason="stop" if ids[-1] in stop else "length",
            logprobs=np.array(logprobs, np.float32)[:, 0],
        )

    requests = [(prompts[i], seed) for i, each in enumerate(seeds) for seed in each]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        completions = iter(list(pool.map(sample, requests)))
    return [[next(completions) for _ in each] for each in seeds]
