"""Two processes on one machine compute what one does, and resume together."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from training_runs import scratch_folder, steps, weights

from rlt_core.models import load_model, load_tokenizer, save_model

SCRIPT = """
import os, sys
from pathlib import Path
from rlt_core.config import LoRA, ReferenceSync, RewardSpec, StageResources, TeacherGRPOConfig
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from rlt_core.models import load_tokenizer
from rlt_core.prompts.renderer import Renderer
from rlt_core.store import Workspace
from rlt_core.store.files import Files
from rlt_core.training.grpo import train_grpo
from rlt_core.training.reward_function import NoReward, Prompt
from rlt_core.training.rlt_reward import RLTReward

model, folder = Path(sys.argv[1]), Path(sys.argv[2])
stop_at, teacher_logprobs, fault = int(sys.argv[3]), sys.argv[4], sys.argv[5]
sharding, lora = sys.argv[6], LoRA(rank=4) if sys.argv[7] else None
renderer = Renderer(load_format("tiny"), load_tokenizer(model))
rows = [{"question": f"{a}+{a}=?", "solution": str(2 * a) * (a % 2 * 8 + 1)} for a in range(2, 8)]
prompts = [Prompt(r["question"], renderer.teacher_prompt(**r), r) for r in rows]
config = TeacherGRPOConfig(
    steps=4, questions_per_step=3, group_size=4, learning_rate=1e-3, max_prompt_tokens=60,
    max_completion_tokens=8, reference_sync=None if lora else ReferenceSync(every_steps=2),
    teacher_logprobs=teacher_logprobs, lora=lora,
)
resources = StageResources(
    device="cpu", micro_batch_size=4, checkpoint_every_steps=1, processes=2, sharding=sharding
)
asked = os.environ.get("RANK", "0") == "0"
done = [0]
progress = Progress(
    report=lambda step, total, metrics: done.__setitem__(0, step),
    should_stop=lambda: asked and done[0] + 1 == stop_at,
)

class Broken(RLTReward):
    def __call__(self, prompts, completions, sampled, policy):
        if fault == "raised" and not asked:
            raise NoReward(1, "broken")
        result = super().__call__(prompts, completions, sampled, policy)
        if fault == "returned" and not asked and len(completions) > 1:
            result.rewards[1] = float("inf")
        return result

reward = Broken(renderer, model, RewardSpec(), config, resources=resources)
try:
    train_grpo(
        model, prompts, reward, config, seed=0, key="node", stage="teacher-grpo",
        out=folder / "out", work=Workspace(Files(str(folder / "store")), "key"),
        resources=resources, progress=progress,
    )
except RuntimeError as error:
    (folder / f"error-{os.environ['RANK']}").write_text(f"{prompts[0].question_id} {error}")
    raise
"""


def run(
    processes: int,
    model: Path,
    folder: Path,
    *,
    stop_at: int = 0,
    teacher_logprobs: str = "exact",
    fault: str = "",
    sharding: str = "none",
    lora: str = "",
) -> int:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                f"--nproc-per-node={processes}", str(folder / "train.py")]  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(SCRIPT)
    command = [*torchrun, str(model), str(folder), str(stop_at), teacher_logprobs, fault]
    command += [sharding, lora]
    return subprocess.run(command, env=os.environ, capture_output=True, timeout=300).returncode


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scratch_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Callable[..., Path]:
    """The run of one process with some options, once."""

    @cache
    def of(**options: str) -> Path:
        folder = tmp_path_factory.mktemp("alone")
        assert run(1, model, folder, **options) == 0
        return folder

    return of


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path, model: Path, alone: Callable[..., Path]) -> None:
    one, two, broken = alone(), tmp_path / "two", tmp_path / "broken"
    assert run(2, model, two) == 0
    assert_same_weights(one, two)
    assert_same_steps(steps(one / "out"), steps(two / "out"))
    assert run(2, model, broken, stop_at=3) != 0
    assert not (broken / "out").exists()
    assert run(2, model, broken) == 0
    assert weights(broken / "out") == weights(two / "out")


@pytest.mark.slow
def test_two_that_share_the_weights_are_one(
    tmp_path: Path, model: Path, alone: Callable[..., Path]
) -> None:
    """Rollouts, rewards, updates and the reference, which is synced; then with an interruption,
    and ended by one process that holds all."""
    one, (two, broken, other) = alone(), (tmp_path / name for name in ("two", "broken", "other"))
    assert run(2, model, two, sharding="fsdp") == 0
    assert_same_weights(one, two)
    assert_same_steps(steps(one / "out"), steps(two / "out"))
    assert run(2, model, broken, stop_at=3, sharding="fsdp") != 0
    assert not (broken / "out").exists()
    shutil.copytree(broken, other)
    assert run(2, model, broken, sharding="fsdp") == 0
    assert weights(broken / "out") == weights(two / "out")
    assert run(1, model, other) == 0
    assert_same_weights(one, other)


@pytest.mark.slow
def test_sharded_from_a_model_that_a_stage_has_saved_in_bfloat16(
    tmp_path: Path, model: Path
) -> None:
    """Policy and reference are read as they were saved and moved in float32."""
    saved = tmp_path / "model"
    save_model(load_model(model, "bfloat16"), load_tokenizer(model), saved)
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(1, saved, one) == 0
    assert run(2, saved, two, sharding="fsdp") == 0
    assert_same_weights(one, two)
    assert_same_steps(steps(one / "out"), steps(two / "out"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"teacher_logprobs": "rollout"}, {"lora": "lora"}], ids=["recorded", "lora"]
)
def test_sharded_with_options(
    tmp_path: Path, model: Path, alone: Callable[..., Path], options: dict[str, str]
) -> None:
    one, two = alone(**options), tmp_path / "two"
    assert run(2, model, two, sharding="fsdp", **options) == 0
    assert_same_weights(one, two)
    assert_same_steps(steps(one / "out"), steps(two / "out"))


DIFFERENT = {"stage", "rollout_gap_mean", "rollout_gap_max", "reference_kl"}
"""A gap is rounding alone; TRL's KL is a mean of micro-batches' means over tokens."""


def assert_same_weights(one: Path, two: Path) -> None:
    first, second = (load_file(run / "out/model/model.safetensors") for run in (one, two))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        np.testing.assert_allclose(tensor, second[name], atol=1e-5, err_msg=name)


def assert_same_steps(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    """Rewards, their parts and the diagnostics' means, over completions of all processes."""
    assert len(one) == len(two) == 4
    for first, second in zip(one, two, strict=True):
        assert first["copied"] is not None and first["compression"] is None
        for name in set(first) - DIFFERENT:
            # rounding alone: gradients are summed in another order
            expected = first[name] and pytest.approx(first[name], rel=1e-3, abs=1e-5)
            assert second[name] == expected, name


@pytest.mark.slow
def test_recorded_log_probs_over_two_processes(
    tmp_path: Path, model: Path, alone: Callable[..., Path]
) -> None:
    one, two = alone(teacher_logprobs="rollout"), tmp_path / "two"
    assert run(2, model, two, teacher_logprobs="rollout") == 0
    assert_same_steps(steps(one / "out"), steps(two / "out"))
    for row in steps(two / "out"):
        assert 0 < row["rollout_gap_mean"] <= row["rollout_gap_max"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"), [("raised", "broken"), ("returned", "its reward is inf")]
)
def test_one_process_without_a_reward_stops_both(
    tmp_path: Path, model: Path, fault: str, message: str
) -> None:
    """Three groups of four over two processes: the second's completion 1 is the step's 7, which is
    sample 3 of a question whose group both share."""
    folder = tmp_path / "run"
    assert run(2, model, folder, fault=fault) != 0
    assert not (folder / "out").exists()
    first, second = ((folder / f"error-{rank}").read_text() for rank in (0, 1))
    assert first == second
    assert re.fullmatch(rf".* trace \d\+\d=\?-3: {message}", first)
