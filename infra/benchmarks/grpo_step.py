"""Compare a step of teacher GRPO with one whose reward is a plain loop.

    python -m infra.benchmarks.grpo_step [STEPS]

The `tiny` profile's questions, completions, tokens and micro-batches, and a base model of its shape
that was trained for BASE_STEPS steps, so that its explanations are sums and mostly have an end.
Three trainings with the same seeds: `exact` scores with one call per model, `rollout` replaces the
teacher's pass by the log-probs that the engine recorded, `plain` scores one completion at a time
with the logits of every position and encodes both chats again. Means of the steps after the first,
best of REPEATS rounds; `scoring` is the reward's part of a step, the rest is the same code.

The plain way scores the token ids of the rollout, so the first step's rewards must agree: exit
status 1 if one differs by 1e-3. Later steps differ, since rounding moves the weights by 1e-6 until
a sampled token changes.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from infra.benchmarks.reward import all_logprobs
from rlt_core.config import Config, ScratchModel, StageResources, TeacherGRPOConfig
from rlt_core.data.generators.arithmetic import arithmetic_rows
from rlt_core.generation import Completion
from rlt_core.models import load_tokenizer
from rlt_core.profiles import tiny
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.reward.formula import reward_parts
from rlt_core.rows import read_rows
from rlt_core.scoring import eval_mode
from rlt_core.store import Workspace
from rlt_core.store.files import Files
from rlt_core.training.base import train_base
from rlt_core.training.context import TrainingContext
from rlt_core.training.grpo import train_grpo
from rlt_core.training.reward_function import Prompt, RewardFunction, Rewards
from rlt_core.training.rlt_reward import RLTReward

BASE_STEPS = 300
REPEATS = 2
TOLERANCE = 1e-3


class PlainReward(RLTReward):
    """The RLT reward, one completion at a time."""

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], policy: nn.Module
    ) -> Rewards:
        with torch.no_grad(), eval_mode(policy):
            pairs = zip(prompts, completions, strict=True)
            return Rewards([self._reward(prompt, each.ids, policy) for prompt, each in pairs])

    def _reward(self, prompt: Prompt, ids: Sequence[int], policy: nn.Module) -> float:
        think = self._renderer.split_completion(ids)
        contexts = self._contexts(prompt, think.text, think.ids)
        teacher, tokenizer = contexts.teacher, self._renderer.tokenizer
        assert teacher
        for context in (contexts.student, teacher):
            tokenizer(tokenizer.decode(context.ids), add_special_tokens=False)
        student_T = all_logprobs(self._student, contexts.student.ids, self._spec.temperature)
        teacher_T = all_logprobs(policy, teacher.ids, self._spec.temperature)
        return reward_parts(
            student_T[slice(*contexts.solution)], student_T[slice(*contexts.student.think)],
            teacher_T[slice(*teacher.think)], closed=think.closed, spec=self._spec,
        ).reward  # fmt: skip


class Timed(RewardFunction):
    """A reward function that records the seconds and the first rewards of whole batches; before the
    first step, training calls it with one made-up completion to see whether memory suffices."""

    def __init__(self, reward: RewardFunction, batch_size: int) -> None:
        self.stop_ids, self.reads_policy = reward.stop_ids, reward.reads_policy
        self._reward, self._batch_size = reward, batch_size
        self.seconds: list[float] = []
        self.first: list[float] = []

    def check(self, prompts: Sequence[Prompt], max_completion_tokens: int) -> None:
        self._reward.check(prompts, max_completion_tokens)

    def __call__(self, *arguments: Any, **named: Any) -> Rewards:
        started = time.perf_counter()
        result = self._reward(*arguments, **named)
        if len(result.rewards) == self._batch_size:
            self.seconds.append(time.perf_counter() - started)
            self.first = self.first or result.rewards
        return result


@dataclass(frozen=True)
class Measured:
    """One training: its rows of `train_steps` and mean seconds of the steps after the first."""

    steps: list[dict[str, Any]]
    first_rewards: list[float]
    step_s: float
    scoring_s: float


def context(stage: str, out: Path, resources: StageResources) -> TrainingContext:
    """Return the surroundings of a training that writes into a folder."""
    work = Workspace(Files(str(out / "work")), stage)
    return TrainingContext(stage, 0, out, work, resources, Progress())


def base_model(config: Config, folder: Path) -> Path:
    """Train a model of the profile's shape on sums and return its folder."""
    assert isinstance(config.base_model, ScratchModel)
    with redirect_stdout(StringIO()):
        train_base(
            config.base_model.model_copy(update={"steps": BASE_STEPS}),
            (),
            load_format(config.prompt_format),
            context("base-model", folder, config.resources.of("base-model")),
        )
    return folder / "model"


def measure(
    model: Path, renderer: Renderer, reward: RewardFunction, grpo: TeacherGRPOConfig,
    resources: StageResources,
) -> Measured:  # fmt: skip
    """Train `grpo.steps` steps on generated sums."""
    assert grpo.steps is not None
    prompts = [
        Prompt(row.question, renderer.teacher_prompt(row.question, row.solution), asdict(row))
        for row in arithmetic_rows(grpo.steps * grpo.questions_per_step, seed=0)
    ]
    timed = Timed(reward, grpo.questions_per_step * grpo.group_size)
    with tempfile.TemporaryDirectory() as name, redirect_stdout(StringIO()):
        train_grpo(
            model, prompts, timed, grpo, "benchmark",
            context("teacher-grpo", Path(name), resources),
        )  # fmt: skip
        steps = read_rows(Path(name), "train_steps")
    count = len(steps) - 1
    return Measured(
        steps,
        timed.first,
        step_s=sum(step["seconds"] for step in steps[1:]) / count,
        scoring_s=sum(timed.seconds[1:]) / count,
    )


def main() -> int:
    config = tiny()
    resources = config.resources.of("teacher-grpo").model_copy(update={"device": "cpu"})
    torch.set_num_threads(resources.threads)
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    grpo = config.teacher_grpo.model_copy(update={"steps": steps, "epochs": None})
    rollout = grpo.model_copy(update={"teacher_logprobs": "rollout"})
    with tempfile.TemporaryDirectory() as name:
        model = base_model(config, Path(name))
        renderer = Renderer(load_format(config.prompt_format), load_tokenizer(model))

        def run(way: str) -> Measured:
            recipe = rollout if way == "rollout" else grpo
            kind = PlainReward if way == "plain" else RLTReward
            reward = kind(renderer, model, config.reward, recipe, resources=resources)
            return measure(model, renderer, reward, recipe, resources)

        rounds = [{way: run(way) for way in ("plain", "exact", "rollout")} for _ in range(REPEATS)]
    best = {way: min((each[way] for each in rounds), key=lambda m: m.step_s) for way in rounds[0]}
    plain = best["plain"]
    print(
        f"{grpo.questions_per_step} questions x {grpo.group_size} completions, "
        f"{torch.get_num_threads()} thread(s), {steps - 1} steps, best of {REPEATS}"
    )
    print(f"{'':<10}{'s a step':>10}{'scoring s':>11}{'step x':>8}{'scoring x':>11}{'rewards':>10}")
    gaps = []
    for way, each in best.items():
        pairs = zip(each.first_rewards, plain.first_rewards, strict=True)
        gaps.append(max(abs(ours - theirs) for ours, theirs in pairs))
        print(
            f"{way:<10}{each.step_s:10.3f}{each.scoring_s:11.3f}{plain.step_s / each.step_s:8.2f}"
            f"{plain.scoring_s / each.scoring_s:11.1f}{gaps[-1]:10.0e}"
        )
    return int(max(gaps) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
