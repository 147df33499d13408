"""Two processes on one machine compute what one does, and resume together."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from training_runs import scratch_folder, weights

SCRIPT = """
import os, sys
from pathlib import Path
from rlt_core.config import TeacherGRPOConfig, ReferenceSync, RewardSpec, StageResources
from rlt_core.control import Control
from rlt_core.formats import load_format
from rlt_core.models import load_tokenizer
from rlt_core.prompts import Prompter
from rlt_core.store import Workspace
from rlt_core.store.files import Files
from rlt_core.training.grpo import train_grpo
from rlt_core.training.rewards import Prompt, RLTReward

model, folder, stop_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
prompter = Prompter(load_format("tiny"), load_tokenizer(model))
rows = [{"question": f"{a}+{a}=?", "solution": str(2 * a)} for a in range(2, 8)]
prompts = [Prompt(r["question"], prompter.teacher_prompt(**r), r) for r in rows]
config = TeacherGRPOConfig(
    steps=4, questions_per_step=4, group_size=4, learning_rate=1e-3, max_prompt_tokens=60,
    max_completion_tokens=8, reference_sync=ReferenceSync(every_steps=2),
)
resources = StageResources(device="cpu", micro_batch_size=4, checkpoint_every_steps=1)
asked = os.environ.get("RANK", "0") == "0"
done = [0]
control = Control(
    progress=lambda step, total, metrics: done.__setitem__(0, step),
    should_stop=lambda: asked and done[0] + 1 == stop_at,
)
reward = RLTReward(prompter, model, RewardSpec(), config, resources=resources)
train_grpo(
    model, prompts, reward, config, seed=0, key="node", stage="teacher-grpo", out=folder / "out",
    work=Workspace(Files(str(folder / "store")), "key"), resources=resources, control=control,
)
"""


def run(processes: int, model: Path, folder: Path, stop_at: int = 0) -> int:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                f"--nproc-per-node={processes}", str(folder / "train.py")]  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(SCRIPT)
    command = [*torchrun, str(model), str(folder), str(stop_at)]
    return subprocess.run(command, env=os.environ, capture_output=True, timeout=300).returncode


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    model = scratch_folder(tmp_path / "model")
    one, two, broken = (tmp_path / name for name in ("one", "two", "broken"))
    assert run(1, model, one) == 0
    assert run(2, model, two) == 0
    first, second = (load_file(run / "out/model/model.safetensors") for run in (one, two))
    for name, tensor in first.items():
        np.testing.assert_allclose(tensor, second[name], atol=1e-5, err_msg=name)
    assert run(2, model, broken, stop_at=3) != 0
    assert not (broken / "out").exists()
    assert run(2, model, broken) == 0
    assert weights(broken / "out") == weights(two / "out")
