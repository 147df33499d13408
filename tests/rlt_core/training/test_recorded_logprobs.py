"""Rewards from recorded log-probs are those of recomputed ones, and the difference is seen."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_runs import FORMAT, TEACHER, context, scratch_folder, steps

from rlt_core.config import RewardSpec, Sampling, StageResources, TeacherGRPOConfig
from rlt_core.errors import UserError
from rlt_core.generation import Completion
from rlt_core.generation.hf import TransformersEngine
from rlt_core.models import load_model, load_tokenizer
from rlt_core.prompts.format import PromptFormat
from rlt_core.prompts.renderer import Renderer
from rlt_core.scoring import selected_logprobs
from rlt_core.scoring.lm_head import FLOATS
from rlt_core.stages import TeacherGRPOStageConfig
from rlt_core.store import Workspace
from rlt_core.training.grpo import train_grpo
from rlt_core.training.reward_function import Prompt
from rlt_core.training.rlt_reward import RLTReward

ROLLOUT = TEACHER.model_copy(update={"teacher_logprobs": "rollout"})
SPEC = RewardSpec()
PREFIXED = FORMAT.model_copy(update={"name": "prefixed", "padding": "\n\n", "score_padding": True})


# ---------------------------------------------------------------- models
class Setting:
    """A random teacher and student of one format, and completions that the teacher sampled."""

    def __init__(self, folder: Path, format: PromptFormat) -> None:
        teacher = scratch_folder(folder / "teacher", 0, format)
        self.student = scratch_folder(folder / "student", 1, format)
        self.renderer = Renderer(format, load_tokenizer(teacher))
        self.policy = load_model(teacher)
        rows = [{"question": f"{a}+{a}{'?' * a}", "solution": str(2 * a)} for a in range(3, 6)]
        prompts = [
            Prompt(row["question"], self.renderer.teacher_prompt(**row), row) for row in rows
        ]
        engine = TransformersEngine(self.policy, 10_000)
        drawn = engine.generate(
            [prompt.ids for prompt in prompts],
            Sampling(temperature=SPEC.temperature, max_tokens=12),
            [[10 * q + sample for sample in range(4)] for q in range(3)],
            self.renderer.stop_ids,
        )
        close = [
            *self.renderer._encode_fixed(format.explanation_close), self.renderer.end_of_turn
        ]  # fmt: skip
        self.prompts: list[Prompt] = []
        self.completions: list[Completion] = []
        for prompt, group in zip(prompts, drawn, strict=True):
            by_hand = [close, [*self.renderer.encode("add them"), *close]]
            self.prompts += [prompt] * (len(group) + len(by_hand))
            self.completions += group
            self.completions += [
                Completion(ids, "stop", self.logprobs(prompt, ids)) for ids in by_hand
            ]

    def logprobs(self, prompt: Prompt, ids: list[int]) -> FLOATS:
        span = (len(prompt.ids), len(prompt.ids) + len(ids))
        ((found,),) = selected_logprobs(
            self.policy, [[*prompt.ids, *ids]], [[span]], SPEC.temperature, 10_000
        )
        return found

    def reward(self, config: TeacherGRPOConfig) -> RLTReward:
        resources = StageResources(device="cpu")
        return RLTReward(self.renderer, self.student, SPEC, config, resources=resources)


@pytest.fixture(scope="module", params=[FORMAT, PREFIXED], ids=lambda format: format.name)
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("setting"), request.param)


def test_rewards_are_those_of_recomputed_log_probs(setting: Setting) -> None:
    batch = (setting.prompts, setting.completions, setting.policy)
    exact, rollout = setting.reward(TEACHER)(*batch), setting.reward(ROLLOUT)(*batch)
    thinks = [setting.renderer.split_completion(each.ids) for each in setting.completions]
    kinds = {(think.closed, bool(think.ids)) for think in thinks}
    assert kinds >= {(True, True), (False, True), (True, False)}
    np.testing.assert_allclose(rollout.rewards, exact.rewards, atol=1e-4)
    for ours, theirs in zip(rollout.rows, exact.rows, strict=True):
        for name, value in theirs.items():
            expected = value if isinstance(value, str | None) else pytest.approx(value, abs=1e-4)
            assert ours[name] == expected, name


def test_recorded_log_probs_are_what_is_used(setting: Setting) -> None:
    shifted = [
        replace(each, logprobs=np.subtract(each.logprobs, np.float32(0.25)))
        for each in setting.completions
    ]
    reward = setting.reward(ROLLOUT)
    good = reward(setting.prompts, setting.completions, setting.policy)
    stale = reward(setting.prompts, shifted, setting.policy)
    for i, (prompt, each) in enumerate(zip(setting.prompts, setting.completions, strict=True)):
        ids = each.ids
        think = setting.renderer.split_completion(ids).ids
        context = setting.renderer.teacher_context(**prompt.row, think_ids=think)
        start, end = context.think
        # With padding that was not sampled, all is computed.
        as_sampled = start >= len(prompt.ids) and context.ids[start:end] == ids[: end - start]
        share = float(bool(think) and as_sampled)
        shift = stale.rows[i]["kl_mean"] - good.rows[i]["kl_mean"]
        assert shift == pytest.approx(-0.25 * share, abs=1e-5)


def test_the_policy_computes_only_what_was_not_sampled(setting: Setting) -> None:
    read: list[int] = []
    embedding = setting.policy.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda module, args, out: read.append(args[0].numel()))
    batch = (setting.prompts, setting.completions, setting.policy)
    counts = []
    for config in (TEACHER, ROLLOUT):
        read.clear()
        setting.reward(config)(*batch)
        counts.append(sum(read))
    hook.remove()
    exact, rollout = counts
    assert (rollout > 0) == setting.renderer.format.score_padding
    assert rollout < (1.01 if setting.renderer.format.score_padding else 0.2) * exact


# ---------------------------------------------------------------- training
@pytest.fixture
def curve(
    tmp_path: Path, workspace: Callable[[str], Workspace], resources: StageResources
) -> Callable[..., list[dict[str, float]]]:
    teacher, student = (scratch_folder(tmp_path / name, seed) for seed, name in enumerate("ts"))
    renderer = Renderer(FORMAT, load_tokenizer(teacher))
    rows = [{"question": f"{a}+{a}?", "solution": str(2 * a)} for a in range(3, 11)]
    prompts = [Prompt(row["question"], renderer.teacher_prompt(**row), row) for row in rows]

    def run(name: str, config: TeacherGRPOConfig) -> list[dict[str, float]]:
        train_grpo(
            teacher, prompts, RLTReward(renderer, student, SPEC, config, resources=resources),
            config, "node", context(tmp_path / name, workspace(name), resources),
        )  # fmt: skip
        return steps(tmp_path / name)

    return run


def test_training_on_recorded_log_probs_takes_the_same_course(curve: Callable) -> None:
    exact, rollout = curve("exact", TEACHER), curve("rollout", ROLLOUT)
    assert rollout
    for ours, theirs in zip(rollout, exact, strict=True):
        for name in ("reward", "reward_std", "r_kl", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name
        for row in (ours, theirs):
            assert 0 < row["rollout_gap_mean"] <= row["rollout_gap_max"] < 1e-4
            assert row["rollout_ratio"] == pytest.approx(1, abs=1e-4)


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("config", "reward"), [({"temperature": 1.0}, {}), ({"top_p": 0.9}, {}), ({}, {"kl": "full"})]
)
def test_recorded_log_probs_that_are_not_the_rewards_are_refused(
    config: dict, reward: dict, renderer: Renderer, model: Path, resources
) -> None:
    grpo, spec = ROLLOUT.model_copy(update=config), SPEC.model_copy(update=reward)
    message = "the same value, teacher_grpo.top_p to 1 and reward.kl to k1 or k3"
    with pytest.raises(UserError, match=message):
        RLTReward(renderer, model, spec, grpo, resources=resources)
    with pytest.raises(UserError, match=message):
        TeacherGRPOStageConfig(grpo=grpo, reward=spec, format=FORMAT, seed=0)
    exact = grpo.model_copy(update={"teacher_logprobs": "exact"})
    TeacherGRPOStageConfig(grpo=exact, reward=spec, format=FORMAT, seed=0)
