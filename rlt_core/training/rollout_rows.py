"""Rows of `rollouts`: completions of some steps of GRPO, with what their rewards were made of.

Shapes: N completions of this process in a step, G completions of a question (its group).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.utils import gather_object

from rlt_core.config import GRPOConfig
from rlt_core.generation import Completion
from rlt_core.processes import rank
from rlt_core.sql.schemas import ROLLOUTS
from rlt_core.training.reward_function import Prompt, Rewards

LOGGED_QUESTIONS = 4
"""Questions of a logged step whose completions are kept."""


def logged_groups(
    order: Sequence[int], config: GRPOConfig, steps: int, every: int | None
) -> dict[int, list[int]]:
    """Return logged step (from 1) -> places in the step of the questions to keep: the first and
    last step, and each `every`th.

    `order`: the question at every position of the training (`data_order`). A question that more of
    the logged steps have goes first; one that a step has twice is kept once.
    """
    if every is None:
        return {}
    logged = sorted({1, steps, *range(every, steps + 1, every)})
    size = config.questions_per_step
    parts = {step: order[(step - 1) * size : step * size] for step in logged}
    common = Counter(question for part in parts.values() for question in set(part))
    kept = {
        step: sorted(dict.fromkeys(part), key=lambda question: -common[question])
        for step, part in parts.items()
    }
    return {
        step: sorted(parts[step].index(question) for question in questions[:LOGGED_QUESTIONS])
        for step, questions in kept.items()
    }


def rollout_rows(
    ids: Mapping[str, Any], prompts: Sequence[Prompt], completions: Sequence[Completion],
    result: Rewards, group_size: int, advantages: Sequence[float], groups: Sequence[int],
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the rows of these groups of a step, of the completions of all processes, which must
    call it together with their own (N)."""
    first, rows = rank() * len(prompts), []
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        group, sample = divmod(first + i, group_size)
        if group not in groups:
            continue
        parts = {name: values[i] for name, values in result.parts.items() if name in ROLLOUTS.names}
        rows.append(
            {
                **dict.fromkeys(ROLLOUTS.names),
                **ids,
                **parts,
                **(result.rollouts[i] if result.rollouts else {}),
                "question_id": prompt.question_id,
                "sample": sample,
                "reward": result.rewards[i],
                "advantage": advantages[i],
                "clipped": completion.finish_reason == "length",
                "completion_ids": completion.ids,
                "completion_logprobs": completion.logprobs,
            }
        )
    return list(gather_object(rows))
