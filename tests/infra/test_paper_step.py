"""The step of a published shape runs at a size that a CPU bears, and counts what it did."""

from __future__ import annotations

from infra.benchmarks import paper_step
from rlt_core.config import StageResources

TINY = {
    "model_type": "qwen2", "source": "nowhere", "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300,
    "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip


def test_a_step_of_a_small_shape() -> None:
    grpo = paper_step.recipe(questions=2, completions=4, tokens=16)
    resources = StageResources(device="cpu", micro_batch_size=4, offload=True)
    measured = paper_step.measure(TINY, grpo, resources)
    assert len(measured.steps) == paper_step.STEPS
    assert all(step["loss"] is not None and step["seconds"] > 0 for step in measured.steps)
    assert measured.peak_bytes is None
    said = paper_step.report("small", grpo, measured)
    assert "2 questions x 4 completions" in said and "tokens/s" in said
