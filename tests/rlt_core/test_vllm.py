"""The vLLM engine, a real one: it samples what the transformers engine samples."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from rlt_core.config import Sampling, ScratchModel, StageResources
from rlt_core.errors import UserError
from rlt_core.generation import Completion, Engine, open_engine, sample_seed
from rlt_core.models import load_model, new_model, save_model, tiny_tokenizer
from rlt_core.prompts.format import load_format
from rlt_core.scoring import selected_logprobs
from rlt_core.training import rollout
from rlt_core.training.rollout import open_rollouts

PROMPTS = [list(range(10, 10 + n)) for n in (3, 20, 7)]
STOP = tuple(range(10))
WARM = Sampling(max_tokens=20, temperature=0.7)
GREEDY = Sampling(max_tokens=20, temperature=0)


def peaked(seed: int, **changes: Any) -> PreTrainedModel:
    """A random model whose distributions are far from uniform; its heads have 32 numbers, the least
    that vLLM's CPU kernels take."""
    tokenizer = tiny_tokenizer(load_format("tiny"))
    config = ScratchModel(layers=2, width=128, heads=4, seed=seed)
    model = new_model(config, tokenizer)
    if changes:
        torch.manual_seed(seed)
        model = type(model)(type(model.config)(**(model.config.to_dict() | changes))).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(3)
    return model


def saved(model: PreTrainedModel, folder: Path) -> Path:
    save_model(model, tiny_tokenizer(load_format("tiny")), folder)
    return folder


def check_logprobs(model: PreTrainedModel, sampled: list[list[Completion]]) -> None:
    """They are the model's, after temperature."""
    for prompt, completions in zip(PROMPTS, sampled, strict=True):
        for completion in completions:
            span = (len(prompt), len(prompt) + len(completion.ids))
            [[expected]] = selected_logprobs(model, [prompt + completion.ids], [[span]], 0.7, 1000)
            np.testing.assert_allclose(completion.logprobs, expected, atol=1e-3)


def gap(model: PreTrainedModel, sampled: list[list[Completion]]) -> float:
    """Mean distance of log-probs to the model's."""
    apart = []
    for prompt, completions in zip(PROMPTS, sampled, strict=True):
        for each in completions:
            span = (len(prompt), len(prompt) + len(each.ids))
            [[expected]] = selected_logprobs(model, [prompt + each.ids], [[span]], 0.7, 1000)
            apart.append(np.abs(each.logprobs - expected).mean())
    return float(np.mean(apart))


def same(first: Completion, second: Completion) -> bool:
    return (
        first.ids == second.ids
        and first.finish_reason == second.finish_reason
        and bool(np.allclose(first.logprobs, second.logprobs, atol=1e-3))
    )


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed; `make vllm-cpu` runs this")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


def greedy(engine: Engine) -> list[Completion]:
    return [completion for [completion] in engine.generate(PROMPTS, GREEDY, [[0]] * 3, STOP)]


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_samples_from_the_same_model(tmp_path: Path, vllm: None) -> None:
    model = peaked(0)
    folder = saved(model, tmp_path)
    seeds = [[sample_seed("key", str(i), j) for j in range(4)] for i in range(3)]
    with open_engine(folder, "float32", StageResources(engine="vllm")) as engine:
        assert engine.context == model.config.max_position_embeddings
        near = [PROMPTS[1] * (engine.context // 20)]
        [[full]] = engine.generate(near, WARM, [[0]], ())
        assert (len(near[0]) + len(full.ids), full.finish_reason) == (engine.context, "length")
        theirs = greedy(engine)
        sampled = engine.generate(PROMPTS, WARM, seeds, STOP)
        alone = engine.generate(PROMPTS[1:2], WARM, seeds[1:2], STOP)
        assert not engine.generate([], WARM, [], STOP)
    with open_engine(folder, "float32", StageResources(device="cpu")) as engine:
        assert all(map(same, greedy(engine), theirs))
    assert all(map(same, alone[0], sampled[1])) and len({tuple(c.ids) for c in sampled[1]}) > 1
    assert {c.finish_reason for each in sampled for c in each} == {"stop", "length"}
    for completion in (each for group in sampled for each in group):
        ends = completion.ids[-1] in STOP
        assert completion.finish_reason == ("stop" if ends else "length")
        assert not set(completion.ids[:-1]) & set(STOP)
    check_logprobs(model, sampled)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.parametrize("tied", [True, False])
def test_a_colocated_engine_samples_from_the_current_weights(
    tmp_path: Path, vllm: None, tied: bool
) -> None:
    first, second = (peaked(seed, tie_word_embeddings=tied) for seed in (0, 1))
    now = [first]

    def weights() -> Any:
        return ((name, tensor.detach()) for name, tensor in now[0].named_parameters())

    seeds = [[sample_seed("key", str(i), j) for j in range(4)] for i in range(3)]
    from rlt_core.training.colocated import ColocatedVLLM

    resources = StageResources(engine="vllm", device="cpu")
    policy, environment = load_model(saved(second, tmp_path)), dict(os.environ)
    with ColocatedVLLM(policy, Accelerator(cpu=True), "float32", resources, weights) as engine:
        told = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
        assert not told & {name for name, _ in os.environ.items() ^ environment.items()}
        for model in (first, second, first):
            now[0] = model
            check_logprobs(model, engine.generate(PROMPTS, WARM, seeds, STOP))
        with torch.no_grad():
            for tensor in first.parameters():
                tensor.mul_(0.9)
        check_logprobs(first, engine.generate(PROMPTS, WARM, seeds, STOP))


@pytest.mark.slow
@pytest.mark.vllm
def test_trls_own_way_of_giving_weights_is_given_ours(
    tmp_path: Path, vllm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU. A CPU that packs weights of 16 bits, too, has no room for them."""
    from trl.generation.vllm_generation import VLLMGeneration

    from rlt_core.training import colocated

    monkeypatch.setattr(colocated._PolicyGeneration, "sync_weights", VLLMGeneration.sync_weights)
    first, second = (peaked(seed, tie_word_embeddings=True) for seed in (0, 1))
    policy = load_model(saved(second, tmp_path))
    resources = StageResources(engine="vllm", device="cpu")
    seeds = [[sample_seed("key", str(i), j) for j in range(4)] for i in range(3)]
    with colocated.ColocatedVLLM(
        policy, Accelerator(cpu=True), "bfloat16", resources,
        lambda: rollout.whole_weights(first, "bfloat16"),
    ) as engine:  # fmt: skip
        if 0 in engine._llm.apply_model(lambda model: min(p.numel() for p in model.parameters())):
            pytest.skip("this CPU packs weights of 16 bits")
        sampled = engine.generate(PROMPTS, WARM, seeds, STOP)
    assert gap(first, sampled) < 0.5 < 2 < gap(second, sampled)


# ---------------------------------------------------------------- without vLLM
def test_resources_reach_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=lambda **all: asked.update(all)))
    resources = StageResources(engine="vllm", device="cpu", tensor_parallel=2, vllm_memory=0.4)
    open_engine(tmp_path, "bfloat16", resources)
    assert asked["tensor_parallel_size"] == 2 and asked["gpu_memory_utilization"] == 0.4
    assert asked["dtype"] == "bfloat16" and asked["model"] == str(tmp_path)


def test_weights_leave_from_the_policys_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU of a machine with GPUs, too: NCCL would fail on them with the server waiting."""

    def refuse(device: str) -> None:
        raise NotImplementedError(f"needs a CUDA device, got {device!r}")

    client = SimpleNamespace(base_url="http://host:8000", init_communicator=refuse)
    monkeypatch.setattr(rollout, "connect", lambda url: client)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    resources = StageResources(engine="vllm", device="cpu", vllm_server=client.base_url)
    with pytest.raises(UserError, match="got 'cpu'; start it with"):
        open_rollouts(peaked(0), "float32", resources, Accelerator(cpu=True))
