"""At the size of the `tiny` profile the fast path learns what the plain one does, seed for seed."""

from pathlib import Path
from typing import Any

import pytest

from infra.benchmarks import grpo_step
from rlt_core.models import load_tokenizer
from rlt_core.profiles import tiny
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.training.rlt_reward import RLTReward

STEPS = 12


@pytest.mark.slow
def test_the_fast_path_learns_as_the_plain_one(tmp_path: Path) -> None:
    config = tiny()
    grpo = config.teacher_grpo.model_copy(update={"steps": STEPS, "epochs": None})
    model = grpo_step.base_model(config, tmp_path)
    renderer = Renderer(load_format(config.prompt_format), load_tokenizer(model))
    resources = config.resources.of("teacher-grpo")

    def curve(kind: type[RLTReward]) -> list[dict[str, Any]]:
        reward = kind(renderer, model, config.reward, grpo, resources=resources)
        return grpo_step.measure(model, renderer, reward, grpo, resources).steps

    fast, plain = curve(RLTReward), curve(grpo_step.PlainReward)
    assert len(fast) == len(plain) == STEPS
    assert fast[0]["reward"] == pytest.approx(plain[0]["reward"], abs=1e-4)
    completions = grpo.questions_per_step * grpo.group_size
    for ours, theirs in zip(fast, plain, strict=True):
        # From the second step on rounding may change a sampled token: then completions differ as
        # two samples for the same questions do. Four standard errors of such a difference.
        error = (2 * theirs["reward_std"] ** 2 / completions) ** 0.5
        assert ours["reward"] == pytest.approx(theirs["reward"], abs=4 * error)
    assert fast[-1]["reward"] > fast[0]["reward"]
