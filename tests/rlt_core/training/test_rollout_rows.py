"""The table `rollouts`: which completions it keeps, and that its numbers are the step's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_runs import TEACHER, context, scratch_folder, steps, weights

from rlt_core.config import CorrectnessReward, RewardSpec, StageResources
from rlt_core.grading import Grader
from rlt_core.prompts.renderer import Renderer
from rlt_core.reward.formula import reward_parts
from rlt_core.rows import read_rows
from rlt_core.store import Workspace
from rlt_core.store.files import Files
from rlt_core.training.answer_reward import AnswerReward
from rlt_core.training.grpo import train_grpo
from rlt_core.training.reward_function import NoReward, Prompt, RewardFunction
from rlt_core.training.rlt_reward import RLTReward
from rlt_core.training.rollout_rows import WATCHED_QUESTIONS, WATCHED_SAMPLES, choose

SPEC = RewardSpec(temperature=0.7)


@pytest.fixture
def prompts(renderer: Renderer) -> list[Prompt]:
    rows = [
        {"question": f"{a}+{a}=?", "solution": str(2 * a), "answer": str(2 * a),
         "grader": "arithmetic", "metadata": "{}"}
        for a in range(3, 15)
    ]  # fmt: skip
    return [
        Prompt(row["question"], renderer.teacher_prompt(row["question"], row["solution"]), row)
        for row in rows
    ]


def train(
    folder: Path, model: Path, prompts: list[Prompt], reward: RewardFunction,
    every: int | None = 2, steps: int = 5,
) -> Path:  # fmt: skip
    resources = StageResources(device="cpu", micro_batch_size=4, rollouts_every_steps=every)
    work, out = Workspace(Files(str(folder / "store")), "key"), folder / "out"
    config = TEACHER.model_copy(update={"steps": steps})
    train_grpo(model, prompts, reward, config, "node", context(out, work, resources))
    return out


@pytest.fixture
def reward(renderer: Renderer, tmp_path: Path, resources: StageResources) -> RLTReward:
    student = scratch_folder(tmp_path / "student", seed=1)
    return RLTReward(renderer, student, SPEC, TEACHER, resources=resources)


def test_a_row_is_what_the_completion_was_rewarded_for(
    tmp_path: Path, model: Path, prompts: list[Prompt], reward: RLTReward, renderer: Renderer
) -> None:
    out = train(tmp_path / "on", model, prompts, reward)
    rows, means = read_rows(out, "rollouts"), {row["step"]: row for row in steps(out)}
    watched = [row for row in rows if row["advantage"] is None]
    assert len({(row["step"], row["question_id"], row["sample"]) for row in rows}) == len(rows)
    assert len({row["question_id"] for row in watched}) == WATCHED_QUESTIONS
    assert len(watched) == 4 * WATCHED_QUESTIONS * WATCHED_SAMPLES
    assert len({row["text"] for row in watched}) > len(watched) / 2
    for step in (1, 2, 4, 5):
        of_step = [row for row in rows if row["step"] == step and row["advantage"] is not None]
        if step > 2:  # a watched question is among those of a late step
            assert not {row["question_id"] for row in of_step} & {w["question_id"] for w in watched}
            continue
        for part in ("reward", "r_ss", "r_kl", "kl_max", "doubt"):
            mean = np.mean([row[part] for row in of_step])
            assert mean == pytest.approx(means[step][part], rel=1e-5), part
        rewards = np.array([row["reward"] for row in of_step]).reshape(3, 4)
        centred = rewards - rewards.mean(1, keepdims=True)
        advantages = centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
        assert [row["advantage"] for row in of_step] == pytest.approx(advantages.ravel(), rel=1e-3)
    for row in rows:
        names = ("student_solution_logprobs", "student_think_logprobs", "teacher_think_logprobs")
        parts = reward_parts(*(row[name] for name in names), row["closed"], SPEC)
        assert row["reward"] == pytest.approx(parts.reward) and row["penalty"] == parts.penalty
        assert len(row["completion_logprobs"]) == len(row["completion_ids"])
        assert renderer.split_completion(row["completion_ids"]).text == row["text"]
        assert renderer.decode(row["token_ids"]) == row["text"]
        assert row["clipped"] or row["completion_ids"][-1] in renderer.stop_ids
        assert (row["stage"], row["seed"], row["correct"]) == ("teacher-grpo", 0, None)
    off = train(tmp_path / "off", model, prompts, reward, every=None)
    assert read_rows(off, "rollouts") == []
    assert weights(off) == weights(out) and steps(off) == steps(out)


def test_training_goes_on_without_watched_questions_that_have_no_reward(
    tmp_path: Path, model: Path, prompts: list[Prompt], reward: RLTReward, monkeypatch: Any
) -> None:
    found = RLTReward.__call__

    def some(self: RLTReward, asked: list[Prompt], *more: Any) -> Any:
        if len(asked) == WATCHED_QUESTIONS * WATCHED_SAMPLES:
            raise NoReward("question 1: its reward is nan")
        return found(self, asked, *more)

    monkeypatch.setattr(RLTReward, "__call__", some)
    out = train(tmp_path / "on", model, prompts, reward, steps=2)
    assert len(steps(out)) == 2
    assert all(row["advantage"] is not None for row in read_rows(out, "rollouts"))


def test_answers_are_kept_too(
    tmp_path: Path, model: Path, prompts: list[Prompt], renderer: Renderer
) -> None:
    with Grader() as grader:
        reward = AnswerReward(renderer, CorrectnessReward(), grader)
        rows = read_rows(train(tmp_path, model, prompts, reward, steps=1), "rollouts")
    assert {row["advantage"] for row in rows} == {0.0, None}
    for row in rows:
        assert row["reward"] == CorrectnessReward().unformatted
        assert (row["correct"], row["closed"], row["r_ss"]) == (False, False, None)
        assert row["text"] == renderer.decode(row["completion_ids"])
        assert row["student_think_logprobs"] is None and row["completion_logprobs"]


def test_which_steps_and_questions_are_kept() -> None:
    config = TEACHER.model_copy(update={"questions_per_step": 6})
    order = [*range(6), *range(6, 12), *[12, 13, 5, 14, 12, 15]]
    groups = {1: [0, 1, 2, 3], 2: [0, 1, 2, 3], 3: [0, 1, 2]}
    assert choose(order, 16, config, 3, every=2) == (groups, [15, 14])
    unused = choose(order, 18, config, 3, every=2)
    assert unused == (groups | {3: [0, 1, 2, 3]}, [16, 17])
    others = choose(order, 16, config, 3, every=9)  # the second step is not logged
    assert others == ({1: [0, 1, 2, 3], 3: [0, 1, 2, 3]}, [11, 10])
    assert choose(order, 16, config, 3, every=None) == ({}, [])
