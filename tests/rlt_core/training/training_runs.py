"""What the tests of SFT and GRPO share: comparing runs, and stopping them."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rlt_core.config import ScratchModel, StageResources, TeacherGRPOConfig
from rlt_core.models import new_model, save_model, tiny_tokenizer
from rlt_core.progress import Progress
from rlt_core.prompts.format import PromptFormat, load_format
from rlt_core.rows import read_rows
from rlt_core.store import Workspace
from rlt_core.training.context import TrainingContext

FORMAT = load_format("tiny")
TIMES = ("seconds", "tokens_per_s")
TEACHER = TeacherGRPOConfig(
    steps=5, questions_per_step=3, group_size=4, learning_rate=3e-3, schedule="constant",
    beta=0.5, temperature=0.7, max_prompt_tokens=60, max_completion_tokens=10,
)  # fmt: skip


def scratch_folder(folder: Path, seed: int = 0, format: PromptFormat = FORMAT) -> Path:
    config = ScratchModel(layers=2, width=16, heads=2, max_positions=160, seed=seed)
    tokenizer = tiny_tokenizer(format, config.max_positions)
    save_model(new_model(config, tokenizer), tokenizer, folder)
    return folder


def context(
    out: Path, work: Workspace, resources: StageResources, seed: int = 0,
    progress: Progress | None = None, stage: str = "teacher-grpo",
) -> TrainingContext:  # fmt: skip
    return TrainingContext(stage, seed, out, work, resources, progress or Progress())


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def assert_same_weights(one: Path, two: Path, atol: float) -> None:
    """The models of two trainings differ by rounding at most: in bfloat16 by one step of it."""
    first, second = (load_file(out / "model" / "model.safetensors") for out in (one, two))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        step = torch.finfo(tensor.dtype).eps if tensor.dtype is torch.bfloat16 else 0
        torch.testing.assert_close(second[name], tensor, atol=atol, rtol=step, msg=name)


def steps(out: Path) -> list[dict[str, Any]]:
    """The rows of train_steps without what depends on the clock."""
    rows = read_rows(out, "train_steps")
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def rollouts(out: Path) -> bytes:
    return (out / "rollouts.parquet").read_bytes()


def stop_after(step: int) -> Progress:
    """Asks the training to stop once `step` has been reported."""
    seen = [0]

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        seen[0] = done

    return Progress(report=progress, should_stop=lambda: seen[0] >= step - 1)


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs that a checkpoint could lean on."""


def kill_at(step: int) -> Progress:
    """Dies inside the given step's report, before anything of it is checkpointed."""

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        if done == step:
            raise Killed

    return Progress(report=progress)


def launch(
    script: str | Path, processes: int, model: Path, folder: Path, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run a script on a model in so many processes of torchrun, or in one without it."""
    folder.mkdir(exist_ok=True)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [
            sys.executable, *(torchrun if processes > 1 else []), str(script), str(model),
            str(folder), json.dumps(options),
        ],
        env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
