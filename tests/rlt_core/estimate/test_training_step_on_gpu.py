"""Memory of a training step on a GPU, against the estimate."""

import gc

import pytest
import torch
from medium_models import medium, saved, shape_of, train

from rlt_core.config import LoRA, SFTConfig, StageResources
from rlt_core.estimate.memory import Trained

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
SIZES = {
    "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 8,
    "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "vocab_size": 50_000,
}  # fmt: skip


@pytest.mark.parametrize("lora", [None, LoRA()])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("micro", [1, 2])
def test_the_peak_of_a_training_step_is_within_a_fifth(tmp_path, lora, checkpointing, micro):
    config = medium("qwen2", tied=True, **SIZES)
    resources = {
        "device": "cuda", "gradient_checkpointing": checkpointing, "micro_batch_size": micro
    }  # fmt: skip
    sft = SFTConfig(steps=3, batch_size=2, max_tokens=4096, dtype="bfloat16", lora=lora)
    folder = saved(config, tmp_path / "start", "bfloat16")
    gc.collect()  # trainers are cycles: the last test's would else be freed while this one runs
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    train(folder, tmp_path, 4096, sft, **resources)
    found = torch.cuda.max_memory_allocated() - before
    trained = Trained(shape_of(config), sft, StageResources(**resources), world=1)
    moments = trained.step(micro * 4096, accumulated=micro == 1)
    assert max(sum(parts.values()) for parts in moments.values()) == pytest.approx(found, rel=0.2)
