"""Bytes of tensors that are really held, against the estimate."""

import gc
from functools import partial
from typing import Any

import pytest
import torch
from medium_models import Held, medium, saved, shape_of, train
from peft import get_peft_model
from transformers import AutoModelForCausalLM, DynamicCache
from trl.trainer.utils import add_fused_lm_head

from rlt_core.config import LoRA, SFTConfig, StageResources
from rlt_core.estimate import memory
from rlt_core.estimate.memory import Trained
from rlt_core.generation.hf import GrowingLayer
from rlt_core.scoring.lm_head import head_kl, head_logprobs
from rlt_core.training.checkpoint import ResumableTrainer
from rlt_core.training.policy import adapters

LORA = LoRA(rank=16)
BATCH, TOKENS = 2, 300


def trained(config: Any, half: bool, lora: LoRA | None, checkpointing: bool = False) -> Trained:
    resources = StageResources(device="cpu", gradient_checkpointing=checkpointing)
    recipe = SFTConfig(steps=1, dtype="bfloat16" if half else "float32", lora=lora)
    return Trained(shape_of(config), recipe, resources, world=1)


# ---------------------------------------------------------------- states
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lora", [None, LORA])
def test_weights_gradients_and_moments_are_those_of_the_trainer(tmp_path, tied, lora):
    config = medium("qwen2", tied)
    held = Held()
    end = held.watch()
    sft = SFTConfig(steps=2, batch_size=2, max_tokens=64, dtype="bfloat16", lora=lora)
    try:
        train(saved(config, tmp_path / "start"), tmp_path, 64, sft, device="cpu")
    finally:
        end()
    found, estimate = held.found[-1], trained(config, True, lora)
    states = estimate.states()
    assert states["adapters" if lora else "weights"] == pytest.approx(found["trained"], rel=0.01)
    assert estimate.gradients() == pytest.approx(found["gradients"], rel=0.01)
    assert states["optimizer"] == pytest.approx(found["optimizer"], rel=0.01)
    if lora:
        assert states["weights"] == 2 * estimate.shape.parameters


# ---------------------------------------------------------------- activations
def saved_bytes(model: Any, half: bool) -> int:
    """What autograd keeps of the trainers' forward pass, beside weights and casts of them."""
    causal = getattr(model, "base_model", model)
    causal = getattr(causal, "model", causal) if hasattr(model, "peft_config") else model
    add_fused_lm_head(causal)
    own = {each.untyped_storage().data_ptr() for each in model.parameters()}
    sizes = {tuple(each.shape) for each in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        cast = tuple(tensor.shape) in sizes or tuple(tensor.shape[::-1]) in sizes
        if storage.data_ptr() not in own and not (cast and tensor.dim() == 2):
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    ids = torch.randint(0, 3000, (BATCH, TOKENS))
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=half):
        model(input_ids=ids, labels=ids, fused_lm_head=True)
    return sum(kept.values())


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_autograd_saves(family, half, lora, checkpointing):
    config = medium(family)
    dtype = torch.bfloat16 if half and lora else torch.float32
    model: Any = AutoModelForCausalLM.from_config(config).to(dtype)
    if checkpointing:
        name = "activation_checkpointing_enable"  # of transformers 5.23; 5.19 has the other
        getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()
        if lora:
            model.enable_input_require_grads()
    if lora:
        model = get_peft_model(model, adapters(lora))
    found = saved_bytes(model.train(), half)
    estimate = trained(config, half, lora, checkpointing).activations(BATCH * TOKENS)
    assert estimate == pytest.approx(found, rel=0.05)


# ---------------------------------------------------------------- a whole step
def peak_of_a_step(run: Any) -> int:
    """Most bytes of tensors on the CPU while it runs, beside those from before."""
    gc.collect()  # trainers are cycles: an earlier test's would be freed while this one runs
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    )
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "lora"), [("float32", None), ("bfloat16", None), ("float32", LORA)]
)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("micro", [1, 2])
def test_the_peak_of_a_step_is_within_an_eighth(
    tmp_path, monkeypatch, dtype, lora, checkpointing, micro
):
    """Measured from where the weights are loaded: a profiler counts a mapped file as allocated, or
    does not, by the version of safetensors. Tiles of logits are small here: a CPU computes them
    with copies that a GPU does not need."""
    monkeypatch.setattr("trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE", 128)
    monkeypatch.setattr(memory, "TILE_WORDS", 128)
    config = medium("llama", num_hidden_layers=8)
    sft = SFTConfig(steps=2, batch_size=2, max_tokens=512, dtype=dtype, lora=lora)
    folder = saved(config, tmp_path / "start")
    resources = {
        "device": "cpu", "gradient_checkpointing": checkpointing, "micro_batch_size": micro
    }  # fmt: skip
    run = ResumableTrainer.run
    allocated: list[int] = []

    def measured(*arguments: Any) -> None:
        allocated.append(peak_of_a_step(partial(run, *arguments)))

    monkeypatch.setattr(ResumableTrainer, "run", measured)
    train(folder, tmp_path, 512, sft, **resources)
    estimate = trained(config, dtype == "bfloat16", lora, checkpointing)
    states = estimate.states()
    found = allocated[0] + states["weights"] + states["adapters"]
    moments = dict(estimate.step(micro * 512, accumulated=micro == 1))
    del moments["update"]  # on a CPU AdamW goes tensor by tensor
    expected = max(sum(parts.values()) for parts in moments.values())
    assert expected == pytest.approx(found, rel=0.12)


# ---------------------------------------------------------------- inference
def test_scoring_holds_no_more_than_a_block_of_logits_and_what_is_made_of_it():
    heads = [torch.nn.Linear(16, 5000, bias=False) for _ in range(2)]
    hidden_ND = [torch.randn(3000, 16) for _ in range(2)]
    targets_N = torch.randint(0, 5000, (3000,))

    def logprobs(ranks: bool) -> Any:
        return lambda: head_logprobs(heads[0], hidden_ND[0], targets_N, 0.7, ranks=ranks)

    most = memory.scored_logits(StageResources(device="cpu"))
    with torch.no_grad():
        found = peak_of_a_step(lambda: head_kl((heads[0], heads[1]), tuple(hidden_ND), 0.7))
        assert most == pytest.approx(found, rel=0.15)
        assert max(peak_of_a_step(logprobs(ranks)) for ranks in (False, True)) < most


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("policy", [False, True])
def test_the_cache_is_that_of_a_forward_pass(family, policy):
    """A policy's, under autocast, has keys in the format of its stream."""
    config = medium(family)
    model, cache = AutoModelForCausalLM.from_config(config), DynamicCache(config=config)
    if policy:
        cache.layers = [GrowingLayer() for _ in cache.layers]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=policy):
        model(input_ids=torch.ones((3, 40), dtype=torch.long), past_key_values=cache)
    found = sum(each.nbytes for layer in cache.layers for each in (layer.keys, layer.values))
    estimate = trained(config, True, None)
    assert found == (estimate.kv_bytes(120) if policy else estimate.shape.kv_bytes(120, 4, 4))
