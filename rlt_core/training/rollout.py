"""What draws the completions of GRPO: always the policy as it is at that moment.

With the transformers engine that is the policy itself. A vLLM engine, in the trainer's process or
behind a server (TRL's colocate and server modes), is given the policy's weights before each draw,
so it is never a step behind, after a resume neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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
from rlt_core.models import load_model, pick_device
from rlt_core.progress import Progress
from rlt_core.training import sharding

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from trl.generation.vllm_client import VLLMClient

Weights = Callable[[], Iterable[tuple[str, Tensor]]]

REQUESTS_AT_ONCE = 64
"""Of one process to a server; as many connections as TRL's client keeps."""
SERVE = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs "
    """--weight-transfer-config '{"backend": "nccl"}'"""
)


class LiveEngine(Engine, Protocol):
    """An engine that can draw from what the policy was while the policy changes."""

    def renew(self) -> None:
        """Take up the policy's weights as they are now; all processes together."""

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        stop_ids: Iterable[int],
    ) -> list[list[Completion]]:
        """As `generate`, from the weights that were taken up; in any thread."""


def open_ahead(
    policy: PreTrainedModel, folder: Path, dtype: DType, resources: StageResources
) -> LiveEngine:
    """An engine for rollouts ahead of the training; see `open_rollouts`."""
    weights = partial(whole_weights, policy, dtype)
    if resources.engine == "transformers":
        copy = load_model(folder, dtype, resources.device)
        return _Copy(copy, resources.tokens_per_batch, weights)
    if resources.vllm_server is None:
        raise UserError(
            "rollouts_ahead: a vLLM engine on the trainer's own GPU cannot draw while that trains; "
            "name a resources.vllm_server, or set rollouts_ahead=false"
        )
    return _Server(connect(resources.vllm_server), weights, pick_device(resources.device))


def open_rollouts(
    policy: PreTrainedModel, dtype: DType, resources: StageResources, accelerator: Accelerator
) -> Engine:
    """An engine that draws from the policy as it is.

    All processes of a training must open it and draw from it together. Raises UserError for an
    engine that cannot be had.
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
            "draws on the trainer's GPU; set it to 1, or name a resources.vllm_server"
        )
    from rlt_core.training.colocated import ColocatedVLLM  # imports vLLM

    return ColocatedVLLM(policy, accelerator, dtype, resources, weights)


def whole_weights(policy: nn.Module, dtype: DType) -> Iterator[tuple[str, Tensor]]:
    """A policy's weights by their names in a checkpoint, what is tied once, adapters merged in;
    one tensor at a time is whole. All processes of a sharded policy must go through them."""
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
    """What LoRA adds to a layer's weights (https://arxiv.org/abs/2106.09685, eq. 3)."""
    assert isinstance(layer, LoraLayer)
    [name] = layer.active_adapters
    first, second = (
        sharding.full(matrix.get_parameter(f"{name}.weight").detach())
        for matrix in (layer.lora_A, layer.lora_B)
    )
    return second @ first * layer.scaling[name]


class _Policy(TransformersEngine):
    """The policy in training, which every process gathers where it is sharded."""

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


class _Copy(TransformersEngine):
    """A copy of the policy, which draws while the policy trains."""

    def __init__(self, copy: PreTrainedModel, tokens_per_batch: int, weights: Weights) -> None:
        super().__init__(copy, tokens_per_batch)
        self._weights = weights

    def generate(self, *args: Any, **options: Any) -> list[list[Completion]]:
        """See `Engine.generate`; from the weights as they are now."""
        self.renew()
        return super().generate(*args, **options)

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        stop_ids: Iterable[int],
    ) -> list[list[Completion]]:
        """See `LiveEngine.draw`."""
        return super().generate(prompts, sampling, seeds, stop_ids)

    def renew(self) -> None:
        """See `LiveEngine.renew`."""
        mine = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in self._weights():
                mine[name].copy_(tensor)


class _Server(ClosesItself):
    """A `vllm serve` on GPUs of its own, which takes weights over NCCL (TRL's client)."""

    def __init__(self, client: VLLMClient, weights: Weights, device: str) -> None:
        if processes.rank() == 0:
            _join(client, device)
        self._client, self._weights = client, weights
        self.context = context_of(client)
        self._announced = [
            (name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
            for name, tensor in weights()
        ]

    def close(self) -> None:
        """Leave the group through which weights went."""
        self._client.close_communicator()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        stop_ids: Iterable[int],
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`; from the weights as they are now."""
        self.renew()
        return self.draw(prompts, sampling, seeds, stop_ids)

    def draw(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        stop_ids: Iterable[int],
    ) -> list[list[Completion]]:
        """See `LiveEngine.draw`."""
        return draw_from_server(self._client, prompts, sampling, seeds, stop_ids)

    def renew(self) -> None:
        """The first process sends, once nobody draws any more; the others help to gather what is
        sharded."""
        processes.wait_for_all()
        if processes.rank() == 0:
            self._client.update_named_params(self._announced, iter(self._weights()))
            self._client.reset_prefix_cache()
        else:
            for _ in self._weights():
                pass
        processes.wait_for_all()


def connect(url: str) -> VLLMClient:
    """Raises UserError if no server is there that we can use, or TRL's client lacks vLLM."""
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
    """Tokens that the server gives a prompt and its completion."""
    return int(client.get_server_info()["model_config"]["max_model_len"])


def _join(client: VLLMClient, device: str) -> None:
    """Open the way for weights from the device that they are on. Raises UserError where there is
    none."""
    try:
        client.init_communicator(device)
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"resources.vllm_server={client.base_url}: {error}; start it with: {SERVE}, or empty "
            "the field for an engine in the trainer's process"
        ) from None


def draw_from_server(
    client: VLLMClient,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[Sequence[int]],
    stop_ids: Iterable[int],
) -> list[list[Completion]]:
    """As `Engine.generate`: a request a completion, since a request has one seed."""
    context = context_of(client)
    check_requests(prompts, seeds, context)
    stop = sorted(stop_ids)

    def draw(request: tuple[Sequence[int], int]) -> Completion:
        prompt, seed = request
        drawn = client.generate(
            [list(prompt)],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=min(sampling.max_tokens, context - len(prompt)),
            generation_kwargs={"seed": seed, "stop_token_ids": stop, "ignore_eos": True},
        )
        [ids], [logprobs] = drawn["completion_ids"], drawn["logprobs"]
        return Completion(
            ids=ids,
            finish_reason="stop" if ids[-1] in stop else "length",
            logprobs=np.array(logprobs, np.float32)[:, 0],
        )

    requests = [(prompts[i], seed) for i, each in enumerate(seeds) for seed in each]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        drawn = iter(list(pool.map(draw, requests)))
    return [[next(drawn) for _ in each] for each in seeds]
