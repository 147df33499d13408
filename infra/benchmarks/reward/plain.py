"""The plain way to the same rewards: one completion at a time, all logits.

What the RLT authors' code does to score a completion, without its waste that is no part of the
way (garbage collections, repeated tokenising): both chats are written as text and encoded anew,
spans are found by searching the tags' ids, the whole model runs on one sequence, and logits of
every position and word become float32, are divided by the temperature and log-softmaxed, of which
the tokens' own are gathered.

Shapes: T tokens of a text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from infra.benchmarks.reward.cases import Case, Item
from rlt_core.config import RewardSpec
from rlt_core.formats import PromptFormat
from rlt_core.prompts import Prompter
from rlt_core.reward import reward_parts

Tags = tuple[str, str]


def plain_rewards(case: Case) -> list[float]:
    """Rewards of the items."""
    return [_reward(case, item) for item in case.items]


def _reward(case: Case, item: Item) -> float:
    format = case.prompter.format
    thought, solution = (
        (format.thought_open, format.thought_close),
        (format.solution_open, format.solution_close),
    )
    explanation = (format.explanation_open, format.explanation_close)
    student_ids = _encode(case.prompter, format.student_system, item, _student_turn(format, item))
    teacher_ids = _encode(case.prompter, format.teacher_system, item, _teacher_turn(format, item))
    student_T = _all_logprobs(case.student, student_ids, case.temperature)
    teacher_T = _all_logprobs(case.teacher, teacher_ids, case.temperature)
    return reward_parts(
        student_T[_between(case.prompter, student_ids, solution)],
        student_T[_between(case.prompter, student_ids, thought)],
        teacher_T[_between(case.prompter, teacher_ids, explanation)],
        closed=True,
        spec=RewardSpec(temperature=case.temperature),
    ).reward


# ---------------------------------------------------------------- texts
def _student_turn(format: PromptFormat, item: Item) -> str:
    return (
        f"{format.thought_open}{format.think_prefix}{item.think}{format.thought_close}"
        f"{format.separator}{format.solution_open}{item.solution}{format.solution_close}"
    )


def _teacher_turn(format: PromptFormat, item: Item) -> str:
    return (
        f"{format.solution_open}{item.solution}{format.solution_close}{format.separator}"
        f"{format.explanation_open}{format.think_prefix}{item.think}{format.explanation_close}"
    )


def _encode(prompter: Prompter, system: str, item: Item, turn: str) -> list[int]:
    """Ids of a whole chat."""
    chat = [{"role": "system", "content": system}] if system else []
    chat += [{"role": "user", "content": item.question}, {"role": "assistant", "content": turn}]
    text = prompter.tokenizer.apply_chat_template(chat, tokenize=False)
    return prompter.tokenizer(text, add_special_tokens=False)["input_ids"]


def _between(prompter: Prompter, ids: Sequence[int], tags: Tags) -> slice:
    """Where the tokens between the last pair of tags stand: a system prompt may name them."""
    opening, closing = (
        prompter.tokenizer(tag, add_special_tokens=False)["input_ids"] for tag in tags
    )
    end = _last(ids, closing)
    return slice(_last(ids[:end], opening) + len(opening), end)


def _last(ids: Sequence[int], part: Sequence[int]) -> int:
    """Where `part` last begins. Raises StopIteration if it never does."""
    size = len(part)
    return next(i for i in range(len(ids) - size, -1, -1) if ids[i : i + size] == part)


# ---------------------------------------------------------------- log-probs
def _all_logprobs(
    model: PreTrainedModel, ids: Sequence[int], temperature: float
) -> NDArray[np.float32]:
    """log p of each token under those before it, (T,); the first has none: NaN."""
    ids_T = torch.tensor(ids, device=model.device)
    with torch.no_grad():
        logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0].float()
        logits_TV = logits_TV / temperature
        logprobs_TV = torch.log_softmax(logits_TV, dim=-1)
        logprobs_T = logprobs_TV[:-1].gather(1, ids_T[1:, None])[:, 0]
    return np.concatenate([np.array([np.nan], np.float32), logprobs_T.cpu().numpy()])
