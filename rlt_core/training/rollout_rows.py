"""Rows of `rollouts`: completions of some steps of GRPO, with what their rewards were made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlt_core.config import GRPOConfig, Sampling
from rlt_core.generation import Completion, sample_seed
from rlt_core.generation.engine import Engine
from rlt_core.sql.schemas import ROLLOUTS
from rlt_core.training.reward_function import Prompt, Rewards

LOGGED_QUESTIONS = 4
"""Questions of a logged step whose completions are kept."""
WATCHED_QUESTIONS, WATCHED_SAMPLES = 2, 4
"""Questions with new completions at every logged step, and the number of these."""


def choose(
    order: Sequence[int], count: int, config: GRPOConfig, steps: int, every: int | None
) -> tuple[dict[int, list[int]], list[int]]:
    """Return the logged steps (from 1) with the places in them of the questions to keep, and the
    questions to watch, of `count`.

    Logged are the first step, the last, and each `every`th. Watched are questions that training
    never uses, else those of no logged step, else the last ones: what they show was learned from
    others. Kept are the first ones of a step, none that is watched, and one that a step has twice
    once. `order`: the question at every position of the training (`data_order`).
    """
    if every is None:
        return {}, []
    size = config.questions_per_step
    logged = sorted({1, steps, *range(every, steps + 1, every)})
    parts = {step: order[(step - 1) * size : step * size] for step in logged}
    in_logged = {question for part in parts.values() for question in part}
    first_use = {question: place for place, question in reversed(list(enumerate(order)))}
    latest = sorted(
        range(count), key=lambda each: (each in in_logged, -first_use.get(each, len(order)))
    )
    watched, groups = latest[:WATCHED_QUESTIONS], {}
    for step, part in parts.items():
        kept = [question for question in dict.fromkeys(part) if question not in watched]
        groups[step] = [part.index(question) for question in kept[:LOGGED_QUESTIONS]]
    return groups, watched


def sample_watched(
    engine: Engine, watched: Sequence[Prompt], key: str, step: int, sampling: Sampling,
    stop_ids: Sequence[int],
) -> tuple[list[Prompt], list[Completion]]:  # fmt: skip
    """Sample completions of the watched questions, with seeds of their own; return each with its
    prompt."""
    places, key = range(WATCHED_SAMPLES), f"{key}:watched:{step}"
    seeds = [[sample_seed(key, each.question_id, place) for place in places] for each in watched]
    sampled = engine.generate([each.ids for each in watched], sampling, seeds, stop_ids)
    prompts = [each for each in watched for _ in places]
    return prompts, [completion for group in sampled for completion in group]


def rollout_rows(
    ids: Mapping[str, Any], prompts: Sequence[Prompt], completions: Sequence[Completion],
    result: Rewards, shown: Mapping[int, Mapping[str, Any]],
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the rows of the completions at some places of a batch. `ids` and `shown` (by place):
    columns that the caller knows."""
    return [
        {
            **dict.fromkeys(ROLLOUTS.names),
            **{name: x for name, x in row.items() if name in ROLLOUTS.names},
            "question_id": prompts[place].question_id,
            "reward": result.rewards[place],
            "clipped": completions[place].finish_reason == "length",
            "completion_ids": completions[place].ids,
            "completion_logprobs": completions[place].logprobs,
            **ids,
            **more,
        }
        for place, more in shown.items()
        for row in [result.rows[place] if result.rows else {}]
    ]
