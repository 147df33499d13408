"""Seconds of a step of the teacher's GRPO: `python -m infra.benchmarks.grpo_step`.

The `tiny` profile's numbers (questions and completions of a step, tokens, micro-batches) and a base
model of its shape, trained for BASE_STEPS steps so that its explanations are sums and mostly have
an end. Three trainings in one process, of the same seeds: scored in one call a model (`exact`), the
same with the log-probs that the engine recorded in place of the teacher's pass (`rollout`), and the
plain way: one completion at a time, both chats written as text and encoded anew, the whole model
on one sequence, logits of every position in float32, log-softmaxed, of which the tokens' own are
gathered. The plain way scores the ids of the rollout after all (text need not come back as the same
ids), so that the same policy must earn the same rewards: exit 1 if one of the first step differs by
1e-3. Later the ways part: a rounding in the sixth digit moves the weights by 1e-6, until one token
of some ten thousand falls the other way and its completion goes on from there.

REPEATS rounds over the three ways; of each the round with the least time, means of the steps after
the first. `scoring` is the reward's part in a step; the rest (generation, reference, backward pass)
is the same code.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlt_core.config import Config, RewardSpec, ScratchModel, TeacherGRPOConfig
from rlt_core.control import Control
from rlt_core.data.arithmetic import arithmetic_rows
from rlt_core.formats import load_format
from rlt_core.models import load_model, load_tokenizer
from rlt_core.profiles import tiny
from rlt_core.prompts import Prompter, Span
from rlt_core.reward import reward_parts
from rlt_core.rows import read_rows
from rlt_core.scoring import eval_mode
from rlt_core.store import Workspace
from rlt_core.store.files import Files
from rlt_core.training.base import train_base
from rlt_core.training.grpo import train_grpo
from rlt_core.training.rewards import Prompt, RewardFunction, Rewards, RLTReward
from rlt_core.training.rollouts import LOGPROBS

BASE_STEPS = 300
STEPS = 5
REPEATS = 2
TOLERANCE = 1e-3


# ---------------------------------------------------------------- the plain way
class PlainReward:
    """The RLT reward, a completion at a time."""

    reads_policy = True

    def __init__(self, prompter: Prompter, student: Path, spec: RewardSpec) -> None:
        self.stop_ids = prompter.stop_ids
        self._prompter, self._spec = prompter, spec
        self._student = load_model(student)

    def check(self, prompts: Sequence[Prompt], max_completion_tokens: int) -> None:
        """All fits."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[int]],
        sampled: Sequence[LOGPROBS],
        policy: nn.Module,
    ) -> Rewards:
        """See `RewardFunction`."""
        with torch.no_grad(), eval_mode(policy):
            return Rewards(
                [
                    self._reward(prompt, ids, policy)
                    for prompt, ids in zip(prompts, completions, strict=True)
                ],
                {},
            )

    def _reward(self, prompt: Prompt, ids: Sequence[int], policy: nn.Module) -> float:
        think = self._prompter.split_completion(ids)
        question, solution = prompt.row["question"], prompt.row["solution"]
        student = self._prompter.student_context(question, think.ids, solution)
        teacher = self._prompter.teacher_context(question, solution, think.ids)
        for context in (student, teacher):
            self._encoded_anew(context.ids)
        assert student.solution is not None
        student_T = self._all_logprobs(self._student, student.ids)
        teacher_T = self._all_logprobs(policy, teacher.ids)
        return reward_parts(
            _of(student_T, student.solution),
            _of(student_T, student.think),
            _of(teacher_T, teacher.think),
            closed=think.closed,
            spec=self._spec,
        ).reward

    def _encoded_anew(self, ids: Sequence[int]) -> list[int]:
        tokenizer = self._prompter.tokenizer
        return tokenizer(tokenizer.decode(list(ids)), add_special_tokens=False)["input_ids"]

    def _all_logprobs(self, model: nn.Module, ids: Sequence[int]) -> torch.Tensor:
        """log p of each token but the first under those before it, (T - 1,)."""
        ids_T = torch.tensor(ids)
        logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0].float()
        logprobs_TV = torch.log_softmax(logits_TV / self._spec.temperature, dim=-1)
        return logprobs_TV[:-1].gather(1, ids_T[1:, None])[:, 0]


def _of(logprobs: torch.Tensor, span: Span) -> Any:
    return logprobs[span.start - 1 : span.end - 1].numpy() if span.end > span.start else []


# ---------------------------------------------------------------- what is measured
class Timed:
    """A reward function that counts its seconds and keeps the first step's rewards."""

    def __init__(self, reward: RewardFunction) -> None:
        self.stop_ids, self.check = reward.stop_ids, reward.check
        self.reads_policy = reward.reads_policy
        self._reward = reward
        self.seconds: list[float] = []
        self.first: list[float] = []

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[int]],
        sampled: Sequence[LOGPROBS],
        policy: nn.Module,
    ) -> Rewards:
        """See `RewardFunction`."""
        started = time.perf_counter()
        result = self._reward(prompts, completions, sampled, policy)
        self.seconds.append(time.perf_counter() - started)
        self.first = self.first or result.rewards
        return result


@dataclass(frozen=True)
class Measured:
    """Of one training."""

    steps: list[dict[str, Any]]
    first_rewards: list[float]
    step_s: float
    scoring_s: float


def base_model(config: Config, folder: Path) -> Path:
    """A model of the profile's shape that has seen sums."""
    assert isinstance(config.base_model, ScratchModel)
    with redirect_stdout(StringIO()):
        train_base(
            config.base_model.model_copy(update={"steps": BASE_STEPS}),
            (),
            load_format(config.prompt_format),
            out=folder,
            work=Workspace(Files(str(folder / "work")), "base"),
            resources=config.resources.of("base-model"),
            control=Control(),
        )
    return folder / "model"


def measure(
    model: Path, prompter: Prompter, reward: RewardFunction, grpo: TeacherGRPOConfig, config: Config
) -> Measured:
    """Train STEPS steps."""
    prompts = [
        Prompt(row.question, prompter.teacher_prompt(row.question, row.solution), vars(row))
        for row in arithmetic_rows(STEPS * grpo.questions_per_step, seed=0)
    ]
    timed = Timed(reward)
    with tempfile.TemporaryDirectory() as name, redirect_stdout(StringIO()):
        train_grpo(
            model, prompts, timed, grpo, seed=0, key="benchmark", stage="teacher-grpo",
            out=Path(name), work=Workspace(Files(f"{name}/store"), "grpo"),
            resources=config.resources.of("teacher-grpo"), control=Control(),
        )  # fmt: skip
        steps = read_rows(Path(name), "train_steps")
    count = len(steps) - 1
    return Measured(
        steps,
        timed.first,
        step_s=sum(step["seconds"] for step in steps[1:]) / count,
        scoring_s=sum(timed.seconds[1:]) / count,
    )


def tiny_on_cpu() -> Config:
    """The `tiny` profile where its threads are counted, whatever GPUs there are."""
    config = tiny()
    resources = config.resources.model_copy(update={"device": "cpu"})
    return config.model_copy(update={"resources": resources})


def main() -> int:
    """Measure the three ways, and compare their rewards."""
    config = tiny_on_cpu()
    torch.set_num_threads(config.resources.threads)
    grpo = config.teacher_grpo.model_copy(update={"steps": STEPS, "epochs": None})
    rollout = grpo.model_copy(update={"teacher_logprobs": "rollout"})
    with tempfile.TemporaryDirectory() as name:
        model = base_model(config, Path(name))
        prompter = Prompter(load_format(config.prompt_format), load_tokenizer(model))

        def fast(of: TeacherGRPOConfig) -> RewardFunction:
            resources = config.resources.of("teacher-grpo")
            return RLTReward(prompter, model, config.reward, of, resources=resources)

        ways: dict[str, Callable[[], Measured]] = {
            "exact": lambda: measure(model, prompter, fast(grpo), grpo, config),
            "rollout": lambda: measure(model, prompter, fast(rollout), rollout, config),
            "plain": lambda: measure(
                model, prompter, PlainReward(prompter, model, config.reward), grpo, config
            ),
        }
        rounds = [{way: run() for way, run in ways.items()} for _ in range(REPEATS)]
    best = {way: min((each[way] for each in rounds), key=lambda m: m.step_s) for way in ways}
    return report(best, grpo)


def report(measured: dict[str, Measured], grpo: TeacherGRPOConfig) -> int:
    """Print a line a way; 1 if their rewards differ."""
    plain = measured["plain"]
    tokens = sum(step["completion_tokens"] for step in plain.steps[1:]) / (len(plain.steps) - 1)
    print(
        f"{grpo.questions_per_step} questions x {grpo.group_size} completions of {tokens:.0f} "
        f"tokens, {torch.get_num_threads()} thread(s), {STEPS - 1} steps, best of {REPEATS}"
    )
    print(f"{'':<10}{'s a step':>10}{'scoring s':>11}{'share':>8}{'step x':>8}{'scoring x':>11}")
    for way, each in measured.items():
        print(
            f"{way:<10}{each.step_s:10.3f}{each.scoring_s:11.3f}"
            f"{100 * each.scoring_s / each.step_s:7.1f}%{plain.step_s / each.step_s:8.2f}"
            f"{plain.scoring_s / each.scoring_s:11.1f}"
        )
    gaps = {
        way: max(abs(a - b) for a, b in zip(each.first_rewards, plain.first_rewards, strict=True))
        for way, each in measured.items()
    }
    recorded = max(step["rollout_gap_max"] for step in measured["rollout"].steps)
    print(
        f"first step's rewards: |exact - plain| {gaps['exact']:.1e}, |rollout - plain| "
        f"{gaps['rollout']:.1e} at most; "
        f"|recorded - recomputed| a token at most {recorded:.1e}"
    )
    return int(max(gaps.values()) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
