"""GRPO: its gradient by hand, what it learns, and that interruptions change nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from training_runs import (
    TEACHER,
    Killed,
    assert_same_weights,
    context,
    kill_at,
    rollouts,
    scratch_folder,
    steps,
    stop_after,
    weights,
)

from rlt_core.config import LoRA, ReferenceSync, RewardSpec, StageResources
from rlt_core.errors import Stopped, UserError
from rlt_core.generation import Completion
from rlt_core.generation.hf import TransformersEngine
from rlt_core.models import load_model
from rlt_core.progress import Progress
from rlt_core.prompts.renderer import Renderer
from rlt_core.store import Workspace
from rlt_core.store.files import Files
from rlt_core.training.grpo import train_grpo
from rlt_core.training.metrics import StepRecorder
from rlt_core.training.reward_function import Prompt, RewardFunction, Rewards
from rlt_core.training.rlt_reward import RLTReward

CONFIG = TEACHER.model_copy(update={"reference_sync": ReferenceSync(every_steps=2)})
Run = Callable[..., tuple[Path, dict[str, float]]]


class Digits(RewardFunction):
    """Rewards the share of digits in a completion, and remembers what it saw."""

    def __init__(self, renderer: Renderer) -> None:
        self.stop_ids = renderer.stop_ids
        self._digits = set(renderer.encode("0123456789"))
        self.batches: list[tuple[list[Prompt], list[list[int]], list[float]]] = []

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], policy: object
    ) -> Rewards:
        ids = [each.ids for each in completions]
        rewards = [sum(i in self._digits for i in each) / len(each) for each in ids]
        self.batches.append((list(prompts), ids, rewards))
        return Rewards(rewards)


@pytest.fixture(scope="module")
def prompts(renderer: Renderer) -> list[Prompt]:
    questions = [(f"{a}+{a}{'?' * (a % 3)}", str(2 * a)) for a in range(3, 11)]
    return [
        Prompt(f"id{q}", renderer.teacher_prompt(q, s), {"question": q, "solution": s})
        for q, s in questions
    ]


@pytest.fixture
def train(
    model: Path,
    prompts: list[Prompt],
    renderer: Renderer,
    tmp_path: Path,
    workspace: Callable[[str], Workspace],
    resources: StageResources,
) -> Run:
    def run(name: str, **changes: object) -> tuple[Path, dict[str, float]]:
        out = tmp_path / name
        what = {"prompts": prompts, "reward": Digits(renderer), "config": CONFIG}
        what |= {each: changes.pop(each) for each in what if each in changes}
        where = {"work": workspace(name), "resources": resources} | changes
        return out, train_grpo(model, **what, key="node", context=context(out, **where))

    return run


@pytest.fixture(scope="module")
def recorded(resources: StageResources) -> StageResources:
    """With every step's completions in a table."""
    return resources.model_copy(update={"rollouts_every_steps": 1})


@pytest.fixture(scope="module")
def whole(
    model: Path, prompts: list[Prompt], renderer: Renderer, recorded: StageResources,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """The training with the settings above, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    work = Workspace(Files(str(folder / "store")), "whole")
    surroundings = context(folder / "out", work, recorded)
    train_grpo(model, prompts, Digits(renderer), CONFIG, "node", surroundings)
    return folder / "out"


def logprobs(folder: Path, prompt: list[int], completion: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Of the completion's tokens, and the parameters they depend on."""
    model = load_model(folder)
    logits = model(torch.tensor([prompt + completion])).logits[0] / CONFIG.temperature
    chosen = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return chosen[torch.arange(len(completion)), completion], list(model.parameters())


def step_by_hand(
    policy: Path, reference: Path, batch: tuple[list[Prompt], list[list[int]], list[float]]
) -> tuple[float, float]:
    """Gradient norm and token mean of the KL estimate of one GRPO step."""
    prompts, completions, rewards = batch
    rewards_QG = torch.tensor(rewards).view(CONFIG.questions_per_step, CONFIG.group_size)
    centred_QG = rewards_QG - rewards_QG.mean(1, keepdim=True)
    advantages = (centred_QG / (rewards_QG.std(1, keepdim=True) + 1e-4)).flatten()
    gradient: list[Tensor] = []
    kls = []
    for prompt, ids, advantage in zip(prompts, completions, advantages, strict=True):
        logps, parameters = logprobs(policy, prompt.ids, ids)
        gap = logprobs(reference, prompt.ids, ids)[0].detach() - logps
        kl = gap.exp() - gap - 1
        loss = (-advantage * (logps - logps.detach()).exp() + CONFIG.beta * kl).mean()
        parts = torch.autograd.grad(loss / len(prompts), parameters)
        gradient = [a + b for a, b in zip(gradient, parts, strict=True)] if gradient else [*parts]
        kls.append(kl.detach())
    norm = torch.cat([part.flatten() for part in gradient]).norm().item()
    return norm, torch.cat(kls).mean().item()


def test_the_gradient_is_the_papers(train: Run, model: Path, renderer: Renderer, resources) -> None:
    reward = Digits(renderer)
    whole = resources.model_copy(update={"micro_batch_size": 12})
    far = CONFIG.model_copy(update={"learning_rate": 3e-2})  # so that the KL term weighs
    out, _ = train(
        "two", reward=reward, config=far.model_copy(update={"steps": 2}), resources=whole
    )
    after_one, _ = train("one", config=far.model_copy(update={"steps": 1}), resources=whole)
    first, second = steps(out)
    norm, kl = step_by_hand(model, model, reward.batches[0])
    assert first["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert first["reference_kl"] == pytest.approx(0, abs=1e-6)
    norm, kl = step_by_hand(after_one / "model", model, reward.batches[1])
    assert second["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert second["reference_kl"] == pytest.approx(kl, rel=1e-2) and kl > 1e-5


def test_reward_rises_and_every_step_is_recorded(train: Run, renderer: Renderer) -> None:
    reward = Digits(renderer)
    config = CONFIG.model_copy(update={"steps": 25, "learning_rate": 1e-2, "beta": 0.01})
    out, metrics = train("run", config=config, reward=reward)
    rows = steps(out)
    assert [row["step"] for row in rows] == list(range(1, 26))
    assert metrics["reward_last"] > metrics["reward_first"] + 0.2
    assert metrics["alarm_reward_falling"] == 0
    prompts, completions, rewards = reward.batches[6]
    groups = np.array(rewards).reshape(3, 4)
    assert rows[6]["reward"] == pytest.approx(groups.mean())
    assert rows[6]["reward_std"] == pytest.approx(groups.std(1, ddof=1).mean(), rel=1e-4)
    lengths = [len(ids) for ids in completions]
    assert rows[6]["completion_tokens"] == pytest.approx(np.mean(lengths))
    assert rows[6]["tokens"] == sum(lengths) + sum(len(prompt.ids) for prompt in prompts)
    assert [p.question_id for p in prompts[:4]] == [prompts[0].question_id] * 4


def test_same_seed_same_bytes(train: Run) -> None:
    first, second, other = train("a")[0], train("b")[0], train("c", seed=1)[0]
    assert weights(first) == weights(second)
    assert steps(first) == steps(second)
    assert weights(first) != weights(other)


def test_what_samples_is_compared_with_what_learns(
    train: Run, renderer: Renderer, monkeypatch: pytest.MonkeyPatch, resources
) -> None:
    """Over all tokens of the step, however it is cut."""
    config = CONFIG.model_copy(update={"steps": 2})
    rows = steps(train("same", config=config)[0])
    assert len(rows) == 2
    for row in rows:
        assert 0 < row["rollout_gap_mean"] <= row["rollout_gap_max"] < 1e-4
        assert row["rollout_ratio"] == pytest.approx(1, abs=1e-5)
    generate = TransformersEngine.generate

    def stale(self: Any, *args: Any) -> list[list[Completion]]:
        groups = generate(self, *args)
        off = [[replace(c, logprobs=c.logprobs - np.float32(0.5)) for c in g] for g in groups[1:]]
        return [groups[0], *off]

    monkeypatch.setattr(TransformersEngine, "generate", stale)
    for size in (12, 5):
        cut = resources.model_copy(update={"micro_batch_size": size})
        reward = Digits(renderer)
        out, _ = train(f"stale{size}", config=config, resources=cut, reward=reward)
        lengths = [len(ids) for ids in reward.batches[0][1]]
        share = sum(lengths[4:]) / sum(lengths)
        row = steps(out)[0]
        assert row["rollout_gap_mean"] == pytest.approx(0.5 * share, abs=1e-4)
        assert row["rollout_gap_max"] == pytest.approx(0.5, abs=1e-4)
        assert row["rollout_ratio"] == pytest.approx(1 + (np.e**0.5 - 1) * share, abs=1e-4)


def test_micro_batches_change_nothing_but_rounding(train: Run, resources) -> None:
    config = CONFIG.model_copy(update={"steps": 2, "learning_rate": 1e-4})
    outs = []
    for size in (12, 5):
        cut = resources.model_copy(update={"micro_batch_size": size})
        outs.append(train(f"micro{size}", config=config, resources=cut)[0])
    assert_same_weights(*outs, 2e-5)


@pytest.mark.parametrize(
    ("interrupt", "changes"),
    [
        (stop_after(3), {}),
        (kill_at(5), {}),
        (kill_at(5), {"lora": LoRA(rank=2, alpha=4), "reference_sync": None}),
    ],
)
def test_an_interrupted_run_ends_bit_equal(
    train: Run, whole: Path, interrupt: Progress, changes: dict, recorded: StageResources
) -> None:
    config = CONFIG.model_copy(update=changes)
    if changes:
        whole, _ = train("whole", config=config, resources=recorded)
    with pytest.raises((Stopped, Killed)):
        train("broken", config=config, progress=interrupt, resources=recorded)
    broken, _ = train("broken", config=config, resources=recorded)
    assert weights(broken) == weights(whole)
    assert steps(broken) == steps(whole)
    assert rollouts(broken) == rollouts(whole)


def test_a_checkpoint_from_before_a_column_can_be_gone_on_from(
    train: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = StepRecorder._row
    with monkeypatch.context() as before, pytest.raises(Stopped):
        before.setattr(
            StepRecorder,
            "_row",
            lambda self, *step: {k: v for k, v in row(self, *step).items() if k != "rollout_ratio"},
        )
        train("broken", progress=stop_after(3))
    ratios = [row["rollout_ratio"] for row in steps(train("broken")[0])]
    assert ratios[:3] == [None] * 3 and None not in ratios[3:]


def test_the_reference_follows_the_policy(train: Run, whole: Path) -> None:
    still, _ = train("still", config=CONFIG.model_copy(update={"reference_sync": None, "steps": 3}))
    assert steps(whole)[:2] == steps(still)[:2]
    assert steps(whole)[2]["reference_kl"] < steps(still)[2]["reference_kl"] / 2


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e39"])  # the last in float32
def test_a_reward_that_is_no_number_ends_the_run(
    train: Run, renderer: Renderer, value: str, tmp_path: Path
) -> None:
    class Broken(Digits):
        def __call__(self, *batch: Any) -> Rewards:
            rewards = super().__call__(*batch).rewards
            return Rewards([*rewards[:6], float(value), *rewards[7:]])

    reward = Broken(renderer)
    with pytest.raises(RuntimeError, match=r"^question ") as caught:
        train("run", reward=reward)
    question = reward.batches[0][0][6].question_id
    assert str(caught.value) == f"question {question}: its reward is {float(value)}"
    assert not (tmp_path / "run").exists()


def test_a_student_with_broken_weights_ends_the_run(
    train: Run, renderer: Renderer, tmp_path: Path, resources
) -> None:
    student = scratch_folder(tmp_path / "student", seed=1)
    tensors = load_file(student / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, student / "model.safetensors", {"format": "pt"})
    reward = RLTReward(renderer, student, RewardSpec(), CONFIG, resources=resources)
    message = r"^question id\d+\+\d+\?*: student_solution_logprobs: token 0 is not finite$"
    with pytest.raises(RuntimeError, match=message):
        train("run", reward=reward)


def test_diagnostics_and_equal_rewards_are_recorded_and_reported(
    train: Run, renderer: Renderer
) -> None:
    class Flat(Digits):
        """Equal rewards; one part with values for three completions, another without any."""

        def __call__(self, prompts: Sequence[Prompt], *rest: object) -> Rewards:
            copied = [*[None] * (len(prompts) - 3), 0.75, 1.0, 0.95]
            rows = [{"copied": each, "compression": None} for each in copied]
            return Rewards([0.5] * len(prompts), rows)

    told: list[Mapping[str, float]] = []
    progress = Progress(report=lambda step, total, metrics: told.append(metrics))
    out, metrics = train("run", reward=Flat(renderer), progress=progress)
    rows = steps(out)
    assert [row["zero_std_groups"] for row in rows] == [1] * 5
    for row in rows:
        assert row["copied"] == pytest.approx(0.9)  # the mean over what has a value
        assert (row["compression"], row["doubt"]) == (None, None)
        assert row["clipped"] > 0.5
    assert [each["alarm_zero_variance"] for each in told] == [0, 0, 1, 1, 1]
    assert all(each["alarm_copied"] == 1 and each["alarm_repetition"] == 0 for each in told)
    assert metrics["alarm_zero_variance"] == metrics["alarm_copied"] == 1
    # ten tokens at most, of a model that knows no end: nearly all are cut
    assert metrics["alarm_over_length"] == told[-1]["alarm_over_length"] == 1


def test_bad_input_is_the_users_mistake(train: Run, prompts: list[Prompt]) -> None:
    with pytest.raises(UserError, match=r"2 questions .* do not fill a step"):
        train("few", prompts=prompts[:2])
    with pytest.raises(UserError, match="but the model has 160 positions"):
        train("long", config=CONFIG.model_copy(update={"max_completion_tokens": 150}))
    longest = max(len(prompt.ids) for prompt in prompts)
    short = CONFIG.model_copy(update={"max_prompt_tokens": longest - 1, "steps": 1})
    assert train("short", config=short)[1]["dropped_too_long"] >= 1
