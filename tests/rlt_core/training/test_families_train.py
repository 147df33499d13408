"""SFT, then GRPO, of models that route tokens to experts or transform their logits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import TEACHER, context, steps

from rlt_core.config import FolderModel, RewardSpec, SFTConfig, StageResources
from rlt_core.models import import_model, load_model, load_tokenizer
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.store import Workspace
from rlt_core.training.grpo import train_grpo
from rlt_core.training.reward_function import Prompt
from rlt_core.training.rlt_reward import RLTReward
from rlt_core.training.sft import train_sft
from tests.rlt_core.families import FAMILIES, write_family

FORMAT = load_format("r1").model_copy(update={"teacher_system": "", "student_system": ""})
ROWS = [("1+1", "2", "one more"), ("2+2", "4", "two twos"), ("3+3", "6", "threes")]
BY_NAME = {family.name: family for family in FAMILIES}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("olmoe", "mixtral", "llama-2-chat")]


@pytest.mark.parametrize("name", ["gpt-oss", "gemma-2", *SLOW])
def test_grpo_goes_on_from_sft(
    name: str, tmp_path: Path, workspace: Callable[[str], Workspace], resources: StageResources
) -> None:
    write_family(BY_NAME[name], tmp_path / "published")
    import_model(FolderModel(path=str(tmp_path / "published")), tmp_path / "base")
    renderer = Renderer(FORMAT, load_tokenizer(tmp_path / "base"))
    rows = [renderer.teacher_sft_row(q, s, t) for q, s, t in ROWS]
    train_sft(
        tmp_path / "base", rows, SFTConfig(steps=1, batch_size=3, lora=None),
        context(tmp_path / "sft", workspace("sft"), resources),
    )  # fmt: skip
    saved = json.loads((tmp_path / "sft" / "model" / "config.json").read_text())
    assert not saved.get("output_router_logits")
    [step] = steps(tmp_path / "sft")
    assert step["loss"] == pytest.approx(own_loss(tmp_path / "base", rows), abs=1e-4)

    config = TEACHER.model_copy(update={"steps": 1, "max_prompt_tokens": 300})
    spec = RewardSpec(kl="full") if "kl" in RewardSpec.model_fields else RewardSpec()
    reward = RLTReward(renderer, tmp_path / "base", spec, config, resources=resources)
    prompts = [
        Prompt(q, renderer.teacher_prompt(q, s), {"question": q, "solution": s}) for q, s, _ in ROWS
    ]
    train_grpo(
        tmp_path / "sft" / "model", prompts, reward, config, "k",
        context(tmp_path / "grpo", workspace("grpo"), resources),
    )  # fmt: skip
    [step] = steps(tmp_path / "grpo")
    assert step["rollout_gap_max"] < 1e-3  # TRL's log-probs are those of the sampler
    assert step["reference_kl"] == pytest.approx(0, abs=1e-4)
    stops = Renderer(FORMAT, load_tokenizer(tmp_path / "grpo" / "model")).stop_ids
    assert stops == renderer.stop_ids
    load_model(tmp_path / "grpo" / "model")


def own_loss(folder: Path, rows: list[Any]) -> float:
    """Mean over the labelled tokens, from all logits; no auxiliary loss."""
    model, losses = load_model(folder), []
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids])).logits[0, :-1].log_softmax(-1)
        labels = torch.tensor(row.labels[1:])
        losses.append(-logits[labels >= 0].gather(1, labels[labels >= 0][:, None])[:, 0])
    return float(torch.cat(losses).mean())
