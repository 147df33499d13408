"""A step of teacher GRPO at a published model's shape with random weights: it runs, and its memory
on a GPU is what `rlt plan` estimates.

The settings are the paper's but for fewer questions and completions, shorter texts, and adapters,
since the AdamW states of 7B parameters do not fit on one GPU. Random weights never end a
completion, so every completion has the full length.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.benchmarks.grpo_step import Measured, measure
from infra.benchmarks.reward import random_model
from rlt_core.config import Config
from rlt_core.estimate import estimates
from rlt_core.estimate.shapes import PUBLISHED
from rlt_core.experiments import targets
from rlt_core.graph import upstream
from rlt_core.models import load_tokenizer
from rlt_core.overrides import load_config
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.training.rlt_reward import RLTReward

TINY = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}  # fmt: skip


def settings(questions: int, completions: int, tokens: int, **resources: str) -> Config:
    recipe = {
        "questions_per_step": questions, "group_size": completions, "steps": 3, "epochs": "null",
        "max_prompt_tokens": 256, "max_completion_tokens": tokens, "lora.rank": 16,
        "reference_sync": "null",
    }  # fmt: skip
    resources = {
        "processes": "1", "sharding": "none", "engine": "transformers", "offload": "true"
    } | resources  # fmt: skip
    return load_config(
        "paper-7b",
        [f"teacher_grpo.{name}={value}" for name, value in recipe.items()]
        + [f"resources.stages.teacher-grpo.{name}={value}" for name, value in resources.items()],
    )


def train(shape: dict[str, Any], config: Config, folder: Path) -> Measured:
    """Steps of a random model, which is the reward's student as well."""
    random_model(shape, folder)
    renderer = Renderer(load_format("tiny"), load_tokenizer(folder))
    grpo, resources = config.teacher_grpo, config.resources.of("teacher-grpo")
    reward = RLTReward(renderer, folder, config.reward, grpo, resources=resources)
    return measure(folder, renderer, reward, grpo, resources)


def estimated_bytes(model: str, config: Config) -> int:
    base = config.base_model.model_copy(update={"repo": model})
    nodes = upstream(targets("teacher-grpo", config.model_copy(update={"base_model": base})))
    node = next(node for node in nodes if node.stage.name == "teacher-grpo")
    peak = estimates(config, nodes)[node.key].peak_bytes
    assert peak is not None
    return peak


def test_a_step_of_a_small_shape_runs(tmp_path):
    training = train(TINY, settings(2, 4, tokens=16, device="cpu"), tmp_path)
    assert [row["step"] for row in training.steps] == [1, 2, 3]
    assert all(row["completion_tokens"] == 16 and row["seconds"] > 0 for row in training.steps)
    assert len(training.first_rewards) == 8 and training.scoring_s > 0


def test_a_larger_model_is_estimated_to_take_more():
    config = settings(2, 4, tokens=16, device="cuda")
    small, large = (
        estimated_bytes(f"Qwen/Qwen2.5-{size}-Instruct", config) for size in ("1.5B", "7B")
    )
    assert 2**30 < small < large


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_peak_of_a_step_at_7b_is_within_a_fifth(tmp_path, engine):
    if engine == "vllm":
        pytest.importorskip("vllm")
    model = "Qwen/Qwen2.5-7B-Instruct"
    config = settings(4, 16, tokens=512, device="cuda", engine=engine)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    training = train(json.loads(PUBLISHED.read_text())[model], config, tmp_path)
    found = torch.cuda.max_memory_allocated()
    print(f"{training.step_s:.1f} s a step, {training.scoring_s:.1f} s of it the reward")
    assert found == pytest.approx(estimated_bytes(model, config), rel=0.2)
