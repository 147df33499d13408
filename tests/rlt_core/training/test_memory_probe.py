"""The longest sequences are tried before the first step, and the results are the same."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import TEACHER, context, kill_at
from training_runs import steps as steps_of
from training_runs import weights as weights_of
from transformers import LlamaModel

from rlt_core.config import LoRA, ReferenceSync, RewardSpec, SFTConfig, StageResources
from rlt_core.prompts.renderer import Renderer, Row
from rlt_core.store import Workspace
from rlt_core.training import checkpoint
from rlt_core.training.grpo import train_grpo
from rlt_core.training.reward_function import Prompt
from rlt_core.training.rlt_reward import RLTReward
from rlt_core.training.sft import train_sft

Run = Callable[..., Path]
LONG, MICRO = 40, 4


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, tuple[int, ...]]]:
    """(with gradients, shape of input_ids) of each forward pass."""
    seen: list[tuple[bool, tuple[int, ...]]] = []
    forward = LlamaModel.forward

    def watched(self: Any, *args: Any, **options: Any) -> Any:
        seen.append((torch.is_grad_enabled(), tuple(options["input_ids"].shape)))
        return forward(self, *args, **options)

    monkeypatch.setattr(LlamaModel, "forward", watched)
    return seen


@pytest.fixture
def sft(
    model: Path, tmp_path: Path, workspace: Callable[[str], Workspace], resources: StageResources
) -> Run:
    rows = [Row([7] * length, [-100, *[7] * (length - 1)]) for length in (9, 12, LONG, 8, 11, 10)]

    def run(name: str, **changes: Any) -> Path:
        config = SFTConfig(
            steps=4, batch_size=8, learning_rate=3e-3, lora=changes.get("lora"),
            dtype=changes.get("dtype", "float32"),
        )  # fmt: skip
        progress = changes.get("progress")
        train_sft(
            model, rows, config, context(tmp_path / name, workspace(name), resources, 3, progress)
        )
        return tmp_path / name

    return run


@pytest.fixture
def grpo(
    model: Path,
    renderer: Renderer,
    tmp_path: Path,
    workspace: Callable[[str], Workspace],
    resources: StageResources,
) -> Run:
    asked = [(f"{a}+{a}{'?' * (a % 4)}", str(2 * a)) for a in range(3, 9)]
    prompts = [
        Prompt(f"id{q}", renderer.teacher_prompt(q, s), {"question": q, "solution": s})
        for q, s in asked
    ]

    def run(name: str, **changes: Any) -> Path:
        lora = changes.get("lora")
        config = TEACHER.model_copy(
            update={
                "lora": lora, "reference_sync": None if lora else ReferenceSync(every_steps=2),
                "dtype": changes.get("dtype", "float32"), "steps": 3,
            }
        )  # fmt: skip
        reward = RLTReward(renderer, model, RewardSpec(), config, resources=resources)
        train_grpo(
            model, prompts, reward, config, "node",
            context(tmp_path / name, workspace(name), resources, 3, changes.get("progress")),
        )  # fmt: skip
        return tmp_path / name

    return run


@pytest.fixture(params=["sft", "grpo"])
def train(request: pytest.FixtureRequest) -> Run:
    run: Run = request.getfixturevalue(request.param)
    return run


def with_gradients(shapes: Sequence[tuple[bool, tuple[int, ...]]]) -> list[tuple[int, ...]]:
    return [shape for gradients, shape in shapes if gradients]


def test_the_first_pass_of_sft_is_a_micro_batch_of_the_longest_row(sft: Run, shapes: Any) -> None:
    sft("run")
    first, *others = with_gradients(shapes)
    assert first == (MICRO, LONG)
    assert len(others) == 4 * 2 and all(rows * length <= MICRO * LONG for rows, length in others)


def test_the_first_pass_of_grpo_is_as_long_as_any_may_be(
    grpo: Run, shapes: Any, renderer: Renderer
) -> None:
    grpo("run")
    longest = len(renderer.teacher_prompt("7+7???", "14")) + TEACHER.max_completion_tokens
    first, *others = with_gradients(shapes)
    assert first == (MICRO, longest)
    assert shapes.index((False, (MICRO, longest))) < shapes.index((True, first))  # the reference
    assert all(length <= longest for _, length in others)


@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": "bfloat16", "lora": LoRA(rank=4)}],
    ids=["float32", "bfloat16-lora"],
)
def test_results_are_the_same_without_it(
    train: Run, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    probed = train("probed", **options)
    monkeypatch.setattr(checkpoint, "probe_memory", lambda *_: None)
    plain = train("plain", **options)
    assert weights_of(probed) == weights_of(plain)
    assert steps_of(probed) == steps_of(plain)


def test_what_does_not_fit_fails_before_the_first_step(
    train: Run, monkeypatch: pytest.MonkeyPatch, workspace: Callable[[str], Workspace]
) -> None:
    def too_large(*_: Any) -> Any:
        return torch.empty(1 << 60)

    for trainer in checkpoint.ResumableTrainer.__subclasses__():
        monkeypatch.setattr(trainer, "longest_loss", too_large)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        train("run", progress=kill_at(1))
    assert not workspace("run").parts(checkpoint.GROUP)
