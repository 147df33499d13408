"""GRPO on fast scoring takes the course that it takes on an oracle that computes everything."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from training_runs import FORMAT, TEACHER, context, scratch_folder, steps

from rlt_core.config import RewardSpec, StageResources
from rlt_core.generation import Completion
from rlt_core.models import load_model, load_tokenizer
from rlt_core.prompts.renderer import Renderer, Span
from rlt_core.reward.formula import reward_parts
from rlt_core.store import Workspace
from rlt_core.training.grpo import train_grpo
from rlt_core.training.reward_function import Prompt, RewardFunction, Rewards
from rlt_core.training.rlt_reward import RLTReward

CONFIG = TEACHER.model_copy(update={"steps": 5, "learning_rate": 1e-2, "max_completion_tokens": 16})
SPEC = RewardSpec()


class Oracle(RewardFunction):
    """The reward by the book: one completion at a time, every logit, in float64."""

    reads_policy = True

    def __init__(self, renderer: Renderer, student: Path) -> None:
        self.stop_ids = renderer.stop_ids
        self._renderer, self._student = renderer, load_model(student).double()

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        policy: nn.Module,
    ) -> Rewards:
        teacher = deepcopy(policy).double().eval()
        rewards = []
        for prompt, each in zip(prompts, completions, strict=True):
            think = self._renderer.split_completion(each.ids)
            question, solution = prompt.row["question"], prompt.row["solution"]
            s = self._renderer.student_context(question, think.ids, solution)
            t = self._renderer.teacher_context(question, solution, think.ids)
            lists = (
                logprobs(self._student, s.ids, s.solution),
                logprobs(self._student, s.ids, s.think),
                logprobs(teacher, t.ids, t.think),
            )
            rewards.append(reward_parts(*lists, closed=think.closed, spec=SPEC).reward)
        return Rewards(rewards)


def logprobs(model: nn.Module, ids: list[int], span: Span) -> list[float]:
    with torch.no_grad():
        logits_TV = model(torch.tensor([ids])).logits[0] / SPEC.temperature
    logprobs_TV = torch.log_softmax(logits_TV, dim=-1)
    return [float(logprobs_TV[t - 1, ids[t]]) for t in range(*span)]


@pytest.mark.parametrize("prefix", [pytest.param("", marks=pytest.mark.slow), "\n\n"])
def test_the_learning_curve_is_that_of_the_oracle(
    tmp_path: Path, workspace: Callable[[str], Workspace], resources: StageResources, prefix: str
) -> None:
    format = FORMAT.model_copy(update={"padding": prefix, "score_padding": True})
    teacher, student = (
        scratch_folder(tmp_path / name, seed, format)
        for seed, name in enumerate(("teacher", "student"))
    )
    renderer = Renderer(format, load_tokenizer(teacher))
    rows = [{"question": f"{a}+{a}{'?' * (a % 3)}", "solution": str(2 * a)} for a in range(3, 11)]
    prompts = [Prompt(row["question"], renderer.teacher_prompt(**row), row) for row in rows]

    def curve(name: str, reward: RewardFunction) -> list[dict[str, float]]:
        surroundings = context(tmp_path / name, workspace(name), resources)
        train_grpo(teacher, prompts, reward, CONFIG, "node", surroundings)
        return steps(tmp_path / name)

    fast = curve("fast", RLTReward(renderer, student, SPEC, CONFIG, resources=resources))
    oracle = curve("oracle", Oracle(renderer, student))
    assert len(fast) == len(oracle) == CONFIG.steps
    for ours, theirs in zip(fast, oracle, strict=True):
        for name in ("reward", "reward_std", "reference_kl", "completion_tokens"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-7), name
        # advantages cancel in the loss of a step: what is left of them is rounding
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4, abs=5e-6)
    assert oracle[-1]["loss"] > 1e-3  # the KL term weighs
    assert abs(oracle[-1]["reward"] - oracle[0]["reward"]) > 0.1  # and something was learned
