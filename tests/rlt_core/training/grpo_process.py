"""A GRPO run of a tiny teacher in a process of its own, or in each process of torchrun.

python grpo_process.py MODEL FOLDER OPTIONS, where OPTIONS is JSON: fields of `config` and of
`resources`, the step to `stop` in, and the `fault` of the last process's reward. Exit status 3 once
stopped.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from training_runs import context

from rlt_core.config import RewardSpec, StageResources, TeacherGRPOConfig
from rlt_core.errors import Stopped
from rlt_core.models import load_tokenizer
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.store import Workspace
from rlt_core.store.files import Files
from rlt_core.training.grpo import train_grpo
from rlt_core.training.reward_function import Prompt, Rewards
from rlt_core.training.rlt_reward import RLTReward

CONFIG = {
    "group_size": 4, "max_prompt_tokens": 60, "reference_sync": {"every_steps": 2},
}  # fmt: skip
RESOURCES = {
    "device": "cpu",
    "micro_batch_size": 4,
    "checkpoint_every_steps": 1,
    "rollouts_every_steps": 2,
}


class Faulty(RLTReward):
    """Has no reward for one completion of the last process."""

    fault = ""

    def __call__(self, prompts: Any, completions: Any, *rest: Any) -> Rewards:
        first = os.environ.get("RANK", "0") == "0"
        if self.fault == "raised" and not first:
            raise RuntimeError("broken")
        result = super().__call__(prompts, completions, *rest)
        if self.fault == "returned" and not first and len(completions) > 1:
            return replace(result, rewards=[result.rewards[0], float("inf"), *result.rewards[2:]])
        return result


def main(model: Path, folder: Path, options: dict[str, Any]) -> None:
    renderer = Renderer(load_format("tiny"), load_tokenizer(model))
    rows = [
        {"question": f"{a}+{a}=?", "solution": str(2 * a) * (a % 2 * 8 + 1)} for a in range(2, 8)
    ]
    prompts = [Prompt(r["question"], renderer.teacher_prompt(**r), r) for r in rows]
    config = TeacherGRPOConfig.model_validate(CONFIG | options["config"])
    resources = StageResources.model_validate(RESOURCES | options.get("resources", {}))
    spec = RewardSpec(temperature=config.temperature)
    reward = Faulty(renderer, model, spec, config, resources=resources)
    reward.fault = options.get("fault", "")
    first, done = os.environ.get("RANK", "0") == "0", [0]
    progress = Progress(
        report=lambda step, total, metrics: done.__setitem__(0, step),
        should_stop=lambda: first and done[0] + 1 == options.get("stop"),
    )
    try:
        work = Workspace(Files(str(folder / "store")), "key")
        surroundings = context(folder / "out", work, resources, progress=progress)
        train_grpo(model, prompts, reward, config, "node", surroundings)
    except Stopped:
        sys.exit(3)
    except RuntimeError as error:
        (folder / f"error-{os.environ.get('RANK', 0)}").write_text(f"{error}")
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
