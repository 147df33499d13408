"""Rollouts one step ahead against rollouts in turn: `python -m infra.benchmarks.rollouts_ahead`.

The `tiny` profile's teacher GRPO from a base model of its shape, STEPS steps of the same seeds in
one process: in turn on one thread and on two, and ahead, where one thread draws while another
trains. Prints seconds a step, the course of the reward, and how far the policy that drew is from
the one that learns.
"""

from __future__ import annotations

import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from infra.benchmarks.grpo_step import base_model, tiny_on_cpu
from rlt_core.config import TeacherGRPOConfig
from rlt_core.control import Control
from rlt_core.data.arithmetic import arithmetic_rows
from rlt_core.formats import load_format
from rlt_core.models import load_tokenizer
from rlt_core.prompts import Prompter
from rlt_core.rows import read_rows
from rlt_core.store import Workspace
from rlt_core.store.files import Files
from rlt_core.training.grpo import train_grpo
from rlt_core.training.rewards import Prompt, RLTReward

STEPS = 40
EIGHTHS = 8


def train(model: Path, grpo: TeacherGRPOConfig, threads: int) -> list[dict[str, Any]]:
    """The rows of `train_steps`."""
    config = tiny_on_cpu()
    torch.set_num_threads(threads)
    resources = config.resources.of("teacher-grpo").model_copy(update={"threads": threads})
    prompter = Prompter(load_format(config.prompt_format), load_tokenizer(model))
    prompts = [
        Prompt(row.question, prompter.teacher_prompt(row.question, row.solution), vars(row))
        for row in arithmetic_rows(STEPS * grpo.questions_per_step, seed=0)
    ]
    reward = RLTReward(prompter, model, config.reward, grpo, resources=resources)
    with tempfile.TemporaryDirectory() as name, redirect_stdout(StringIO()):
        train_grpo(
            model, prompts, reward, grpo, seed=0, key="benchmark", stage="teacher-grpo",
            out=Path(name), work=Workspace(Files(f"{name}/store"), "grpo"), resources=resources,
            control=Control(),
        )  # fmt: skip
        return read_rows(Path(name), "train_steps")


def mean(rows: list[dict[str, Any]], column: str) -> float:
    """Of one column."""
    return float(sum(row[column] for row in rows) / len(rows))


def main() -> None:
    """Print a line a way."""
    config = tiny_on_cpu()
    grpo = config.teacher_grpo.model_copy(update={"steps": STEPS, "epochs": None})
    ahead = grpo.model_copy(update={"rollouts_ahead": True})
    ways = {
        "in turn, 1 thread": (grpo, 1),
        "in turn, 2 threads": (grpo, 2),
        "ahead, 1 + 1 threads": (ahead, 1),
    }
    with tempfile.TemporaryDirectory() as name:
        model = base_model(config, Path(name))
        runs = {way: train(model, *how) for way, how in ways.items()}
    usual = mean(runs["in turn, 1 thread"][1:], "seconds")
    print(
        f"{grpo.questions_per_step} questions x {grpo.group_size} completions, {STEPS} steps; "
        f"mean rewards of {EIGHTHS} eighths"
    )
    print(f"{'':<22}{'s a step':>9}{'ratio':>7}{'|gap|':>8}{'ratio of policies':>19}  reward")
    for way, rows in runs.items():
        size = STEPS // EIGHTHS
        course = [mean(rows[first : first + size], "reward") for first in range(0, STEPS, size)]
        seconds = mean(rows[1:], "seconds")
        print(
            f"{way:<22}{seconds:9.2f}{usual / seconds:7.2f}{mean(rows, 'rollout_gap_mean'):8.4f}"
            f"{mean(rows, 'rollout_ratio'):19.4f}  " + " ".join(f"{one:.2f}" for one in course)
        )


if __name__ == "__main__":
    main()
