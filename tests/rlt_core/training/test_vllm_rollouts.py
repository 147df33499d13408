"""GRPO whose completions a real vLLM engine draws, on the CPU: it always has the policy's weights."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from training_runs import FORMAT, steps, weights

from rlt_core.config import ScratchModel
from rlt_core.models import new_model, save_model, tiny_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

SCRIPT = """
import json, os, sys
from pathlib import Path
from rlt_core.config import LoRA, ReferenceSync, RewardSpec, StageResources, TeacherGRPOConfig
from rlt_core.control import Control
from rlt_core.errors import Stopped
from rlt_core.formats import load_format
from rlt_core.models import load_tokenizer
from rlt_core.prompts import Prompter
from rlt_core.store import Workspace
from rlt_core.store.files import Files
from rlt_core.training.grpo import train_grpo
from rlt_core.training.rewards import Prompt, RLTReward

model, folder, asked = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
prompter = Prompter(load_format("tiny"), load_tokenizer(model))
rows = [{"question": f"{a}+{a}=?", "solution": str(2 * a)} for a in range(2, 8)]
prompts = [Prompt(r["question"], prompter.teacher_prompt(**r), r) for r in rows]
config = TeacherGRPOConfig(
    steps=3, questions_per_step=2, group_size=4, learning_rate=3e-3, schedule="constant",
    max_prompt_tokens=60, max_completion_tokens=12, temperature=0.7,
    reference_sync=None if asked.get("lora") else ReferenceSync(every_steps=2),
    lora=LoRA(rank=4, alpha=64) if asked.get("lora") else None,
    teacher_logprobs=asked.get("teacher_logprobs", "exact"),
)
resources = StageResources(
    device="cpu", micro_batch_size=4, checkpoint_every_steps=1, engine=asked["engine"],
    sharding=asked.get("sharding", "none"),
)
done = [0]
control = Control(
    progress=lambda step, total, metrics: done.__setitem__(0, step),
    should_stop=lambda: done[0] + 1 == asked.get("stop_at"),
)
reward = RLTReward(prompter, model, RewardSpec(temperature=0.7), config, resources=resources)
try:
    train_grpo(
        model, prompts, reward, config, seed=0, key="node", stage="teacher-grpo",
        out=folder / "out", work=Workspace(Files(str(folder / "store")), "key"),
        resources=resources, control=control,
    )
except Stopped:
    sys.exit(3)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("vllm", reason="vLLM is not installed; `make vllm-cpu` runs this")
    folder = tmp_path_factory.mktemp("model")
    config = ScratchModel(layers=2, width=64, heads=2, max_positions=160)  # heads of 32 or more
    tokenizer = tiny_tokenizer(FORMAT, config.max_positions)
    save_model(new_model(config, tokenizer), tokenizer, folder)
    return folder


def train(model: Path, folder: Path, processes: int = 1, **asked: Any) -> int:
    """Each training is a process of its own, as it is in a run."""
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(folder / "train.py")]
    done = subprocess.run(
        [*command, str(model), str(folder), json.dumps({"engine": "vllm"} | asked)],
        env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr[-3000:]
    return done.returncode


def check(rows: list[dict[str, Any]]) -> None:
    """A stale policy would be seen: at this learning rate each step moves log-probs by more."""
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert 0 < row["rollout_gap_mean"] <= row["rollout_gap_max"] < 0.05
        assert row["rollout_ratio"] == pytest.approx(1, abs=0.01)
        assert np.isfinite(row["reward"]) and row["r_ss"] is not None


def test_a_resumed_run_is_the_whole_one(model: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(model, whole) == 0
    check(steps(whole / "out"))
    assert train(model, broken, stop_at=2) == 3
    assert not (broken / "out").exists()
    assert train(model, broken) == 0
    check(steps(broken / "out"))
    assert weights(broken / "out") == weights(whole / "out")
    for first, second in zip(steps(whole / "out"), steps(broken / "out"), strict=True):
        assert first == second


def test_the_rewards_may_use_its_log_probs(model: Path, tmp_path: Path) -> None:
    exact, recorded = tmp_path / "exact", tmp_path / "recorded"
    assert train(model, exact) == 0
    assert train(model, recorded, teacher_logprobs="rollout") == 0
    first, second = steps(exact / "out")[0], steps(recorded / "out")[0]
    for name in ("reward", "r_ss", "r_kl", "grad_norm"):
        assert second[name] == pytest.approx(first[name], rel=1e-2, abs=1e-3), name


def test_adapters_are_merged_for_it(model: Path, tmp_path: Path) -> None:
    assert train(model, tmp_path / "run", lora=True) == 0
    check(steps(tmp_path / "run/out"))


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_processes_have_an_engine_each(model: Path, tmp_path: Path, sharding: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(model, one) == 0
    assert train(model, two, processes=2, sharding=sharding) == 0
    check(steps(two / "out"))
    for first, second in zip(steps(one / "out"), steps(two / "out"), strict=True):
        for name in ("reward", "r_kl", "grad_norm", "completion_tokens"):
            assert second[name] == pytest.approx(first[name], rel=1e-3), name
    trained, shared = (load_file(out / "out/model/model.safetensors") for out in (one, two))
    for name, tensor in trained.items():
        np.testing.assert_allclose(tensor, shared[name], atol=1e-4, err_msg=name)
