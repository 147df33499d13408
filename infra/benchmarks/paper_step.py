"""Measure steps of teacher GRPO at a published model's shape, with random weights.

    python -m infra.benchmarks.paper_step [MODEL] [--engine vllm]

MODEL is described in `rlt_core/estimate/published.json` (a large one needs a GPU), or `tiny`. The
settings are the paper's but for fewer questions and completions, shorter texts, and adapters, since
the AdamW states of 7B parameters do not fit on one GPU. The reward's student has the same shape.
Random weights never end a completion, so every completion has the full length. Prints seconds and
completion tokens per second of the steps after the first, and the GPU's peak memory beside the
estimate that `rlt plan` prints; exit status 1 if they differ by more than a fifth.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from infra.benchmarks.grpo_step import Measured, measure
from infra.benchmarks.reward import random_model
from rlt_core import processes
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

MODEL = "Qwen/Qwen2.5-7B-Instruct"
TINY = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}  # fmt: skip
"""The shape for a CPU."""
TOLERANCE = 0.2


class PaperStep(NamedTuple):
    """One training, the model's parameters, and bytes of the GPU's peak (None without a GPU)."""

    training: Measured
    parameters: int
    peak_bytes: int | None


def settings(
    questions: int, completions: int, tokens: int, *, device: str, engine: str = "transformers"
) -> Config:
    """Return the paper's settings for one process, smaller."""
    recipe = {
        "questions_per_step": questions, "group_size": completions, "steps": 3, "epochs": "null",
        "max_prompt_tokens": 256, "max_completion_tokens": tokens, "lora.rank": 16,
        "reference_sync": "null",
    }  # fmt: skip
    resources = {
        "processes": 1, "sharding": "none", "engine": engine, "offload": "true", "device": device
    }  # fmt: skip
    return load_config(
        "paper-7b",
        [f"teacher_grpo.{name}={value}" for name, value in recipe.items()]
        + [f"resources.stages.teacher-grpo.{name}={value}" for name, value in resources.items()],
    )


def measure_step(shape: dict[str, Any], config: Config) -> PaperStep:
    """Train a random model of a shape in the format of published.json."""
    resources = config.resources.of("teacher-grpo")
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model"
        parameters = random_model(shape, model)
        renderer = Renderer(load_format("tiny"), load_tokenizer(model))
        on_gpu = resources.device == "cuda"
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        grpo = config.teacher_grpo
        reward = RLTReward(renderer, model, config.reward, grpo, resources=resources)
        training = measure(model, renderer, reward, grpo, resources)
        peak = torch.cuda.max_memory_allocated() if on_gpu else None
        return PaperStep(training, parameters, peak)


def estimated_bytes(model: str, config: Config) -> int:
    """Return the peak that `rlt plan` prints for the step."""
    base = config.base_model.model_copy(update={"repo": model})
    config = config.model_copy(update={"base_model": base})
    nodes = upstream(targets("teacher-grpo", config))
    node = next(node for node in nodes if node.stage.name == "teacher-grpo")
    peak = estimates(config, nodes)[node.key].peak_bytes
    assert peak is not None
    return peak


def describe(config: Config, step: PaperStep) -> str:
    """Return seconds and tokens per second of the steps after the first."""
    grpo, later = config.teacher_grpo, step.training.steps[1:]
    tokens = sum(row["completion_tokens"] for row in later) / len(later)
    seconds = step.training.step_s
    rate = grpo.questions_per_step * grpo.group_size * tokens / seconds
    return (
        f"{step.parameters / 1e9:.2f} G parameters, {grpo.questions_per_step} questions x "
        f"{grpo.group_size} completions of {tokens:.0f} tokens: {seconds:.1f} s a step, "
        f"{step.training.scoring_s:.1f} s of it the reward, {rate:,.0f} completion tokens/s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=MODEL)
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--completions", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a completion")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = settings(
        given.questions, given.completions, given.tokens, device=device, engine=given.engine
    )
    processes.take_gpus(config.resources.of("teacher-grpo"), 1)
    shape = TINY if given.model == "tiny" else json.loads(PUBLISHED.read_text())[given.model]
    step = measure_step(shape, config)
    said = f"{given.model}, {device}, {describe(config, step)}"
    if step.peak_bytes is None or given.model == "tiny":
        print(f"{said}; memory not compared")
        return 0
    estimate = estimated_bytes(given.model, config)
    print(
        f"{said}; peak memory {step.peak_bytes / 2**30:.1f} GiB, `rlt plan` {estimate / 2**30:.1f} "
        f"GiB, ratio {step.peak_bytes / estimate:.2f}"
    )
    return int(abs(step.peak_bytes / estimate - 1) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
