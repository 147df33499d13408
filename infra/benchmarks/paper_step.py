"""Steps of the teacher's GRPO at a published model's shape, with random weights.

`python -m infra.benchmarks.paper_step [MODEL] [--engine vllm]`: needs a GPU for anything large.
MODEL is one that `rlt_core/estimate/published.json` describes, as Qwen/Qwen2.5-7B-Instruct. The
paper's numbers but for fewer questions and completions, shorter texts, and adapters, since AdamW's
states of 7B do not fit on one card; the reward's student has the same shape. Random weights never
end a text, so every completion has the full length. Prints seconds and tokens a second of a step
and the card's peak memory.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from rlt_core import processes
from rlt_core.config import LoRA, StageResources, TeacherGRPOConfig
from rlt_core.control import Control
from rlt_core.data.arithmetic import arithmetic_rows
from rlt_core.estimate.shapes import PUBLISHED
from rlt_core.formats import load_format
from rlt_core.models import load_tokenizer, pick_device, save_model, tiny_tokenizer
from rlt_core.profiles.paper import paper_7b
from rlt_core.prompts import Prompter
from rlt_core.rows import read_rows
from rlt_core.store import Workspace
from rlt_core.store.files import Files
from rlt_core.training.grpo import train_grpo
from rlt_core.training.rewards import Prompt, RLTReward

STEPS = 3
RANK = 16


@dataclass(frozen=True)
class Measured:
    """Of one training."""

    steps: list[dict[str, Any]]
    parameters: int
    peak_bytes: int | None
    """Of the GPU; None without one."""


def random_model(config: dict[str, Any], folder: Path) -> int:
    """Write a model of a published shape; returns its parameters."""
    names = set(Qwen2Config().to_dict())
    shape = {name: value for name, value in config.items() if name in names - {"model_type"}}
    tokenizer = tiny_tokenizer(load_format("tiny"), config["max_position_embeddings"])
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    with torch.device(pick_device("auto")):
        model = AutoModelForCausalLM.from_config(Qwen2Config(**shape, **ends), dtype=torch.bfloat16)
    save_model(model, tokenizer, folder)
    return int(model.num_parameters())


def measure(config: dict[str, Any], grpo: TeacherGRPOConfig, resources: StageResources) -> Measured:
    """Train STEPS steps."""
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model"
        parameters = random_model(config, model)
        prompter = Prompter(load_format("tiny"), load_tokenizer(model))
        prompts = [
            Prompt(row.question, prompter.teacher_prompt(row.question, row.solution), vars(row))
            for row in arithmetic_rows(STEPS * grpo.questions_per_step, seed=0)
        ]
        on_gpu = pick_device(resources.device) == "cuda"
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        reward = RLTReward(prompter, model, paper_7b().reward, grpo, resources=resources)
        train_grpo(
            model, prompts, reward, grpo, seed=0, key="benchmark", stage="teacher-grpo",
            out=Path(name) / "out", work=Workspace(Files(f"{name}/store"), "grpo"),
            resources=resources, control=Control(),
        )  # fmt: skip
        peak = torch.cuda.max_memory_allocated() if on_gpu else None
        return Measured(read_rows(Path(name) / "out", "train_steps"), parameters, peak)


def recipe(questions: int, completions: int, tokens: int) -> TeacherGRPOConfig:
    """The paper's, smaller."""
    smaller = {
        "questions_per_step": questions, "group_size": completions, "steps": STEPS, "epochs": None,
        "max_completion_tokens": tokens, "lora": LoRA(rank=RANK), "reference_sync": None,
    }  # fmt: skip
    return paper_7b().teacher_grpo.model_copy(update=smaller)


def main() -> None:
    """Measure, and print a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="Qwen/Qwen2.5-7B-Instruct")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--completions", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1024)
    given = parser.parse_args()
    config = json.loads(PUBLISHED.read_text())[given.model]
    grpo = recipe(given.questions, given.completions, given.tokens)
    resources = paper_7b().resources.of("teacher-grpo").model_copy(
        update={"processes": 1, "sharding": "none", "engine": given.engine, "offload": True}
    )  # fmt: skip
    processes.take_gpus(resources, 1)
    print(report(given.model, grpo, measure(config, grpo, resources)))


def report(model: str, grpo: TeacherGRPOConfig, measured: Measured) -> str:
    """A line: the steps after the first."""
    later = measured.steps[1:]
    seconds = sum(step["seconds"] for step in later) / len(later)
    tokens = sum(step["completion_tokens"] for step in later) / len(later)
    drawn = grpo.questions_per_step * grpo.group_size * tokens
    card = torch.cuda.get_device_name() if measured.peak_bytes else "CPU"
    peak = "" if measured.peak_bytes is None else f", peak {measured.peak_bytes / 2**30:.1f} GiB"
    return (
        f"{model} ({measured.parameters / 1e9:.2f} G, adapters of rank {RANK}) on {card}: "
        f"{grpo.questions_per_step} questions x {grpo.group_size} completions of {tokens:.0f} "
        f"tokens, {seconds:.1f} s a step, {drawn / seconds:,.0f} completion tokens/s{peak}"
    )


if __name__ == "__main__":
    main()
