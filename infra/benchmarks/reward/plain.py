"""Two plain ways to the same rewards: one completion at a time, all logits.

Both write the chats as text and encode them anew, run the whole model on one sequence, make
float32 logits of every position and word, divide them by the temperature and log-softmax them, of
which the tokens' own are gathered. `reading_often` also does what the RLT authors' code does
besides: it encodes eight texts a completion (completion, explanation, chat and solution to find
spans; both chats to compare them; both once more to run the models) and finds each span by
searching lists of ids twice, once to see whether it is there and once to see where.
`reading_once` encodes each chat once and searches for the tags. Neither has that code's garbage
collections and cache flushes.

Shapes: T tokens of a text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

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


def reading_often(case: Case) -> list[float]:
    """Rewards of the items, as the authors' code goes about it."""
    return [_reward_reading_often(case, item) for item in case.items]


def reading_once(case: Case) -> list[float]:
    """Rewards of the items, each text encoded once."""
    return [_reward(case, item) for item in case.items]


def _reward_reading_often(case: Case, item: Item) -> float:
    prompter, format = case.prompter, case.prompter.format
    completion = _block(format, format.explanation_open, item.think, format.explanation_close)
    completion_ids, think_ids = _ids(prompter, completion), _ids(prompter, item.think)
    student_text = _chat(prompter, format.student_system, item, _student_turn(format, item))
    teacher_text = _chat(prompter, format.teacher_system, item, _teacher_turn(format, item))
    student_ids, solution_ids = _ids(prompter, student_text), _ids(prompter, item.solution)
    # From the end, as the completion's end is the chat's but for what the template adds.
    in_completion = _searched(completion_ids, think_ids)
    in_student = _searched(student_ids, think_ids)
    in_solution = _searched(student_ids, solution_ids, last=True)
    teacher_ids = _ids(prompter, teacher_text)
    in_teacher = _searched(teacher_ids, think_ids, last=True)
    same = teacher_ids[slice(*in_teacher)] == _ids(prompter, student_text)[slice(*in_student)]
    if not same or in_completion[1] - in_completion[0] != len(think_ids):
        raise ValueError(f"the texts of {item.question!r} lose tokens when they are read anew")
    student_T = _all_logprobs(case.student, _ids(prompter, student_text), case.temperature)
    teacher_T = _all_logprobs(case.teacher, _ids(prompter, teacher_text), case.temperature)
    return reward_parts(
        student_T[slice(*in_solution)],
        student_T[slice(*in_student)],
        teacher_T[slice(*in_teacher)],
        closed=True,
        spec=RewardSpec(temperature=case.temperature),
    ).reward


def _searched(ids: list[int], part: list[int], last: bool = False) -> tuple[int, int]:
    """Where the part stands, having looked first whether it does."""
    starts = range(len(ids) - len(part) + 1)
    if not any(ids[i : i + len(part)] == part for i in starts):
        raise ValueError("the tokens are not there")
    order = reversed(starts) if last else starts
    start = next(i for i in order if ids[i : i + len(part)] == part)
    return start, start + len(part)


def _reward(case: Case, item: Item) -> float:
    format = case.prompter.format
    thought, solution, explanation = (
        (opening + format.padding, format.padding + closing)
        for opening, closing in (
            (format.thought_open, format.thought_close),
            (format.solution_open, format.solution_close),
            (format.explanation_open, format.explanation_close),
        )
    )
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
    thought = _block(format, format.thought_open, item.think, format.thought_close)
    return thought + format.separator + _solution(format, item)


def _teacher_turn(format: PromptFormat, item: Item) -> str:
    explanation = _block(format, format.explanation_open, item.think, format.explanation_close)
    return _solution(format, item) + format.separator + explanation


def _solution(format: PromptFormat, item: Item) -> str:
    return _block(format, format.solution_open, item.solution, format.solution_close)


def _block(format: PromptFormat, opening: str, text: str, closing: str) -> str:
    return f"{opening}{format.padding}{text}{format.padding}{closing}"


def _encode(prompter: Prompter, system: str | None, item: Item, turn: str) -> list[int]:
    """Ids of a whole chat."""
    return _ids(prompter, _chat(prompter, system, item, turn))


def _chat(prompter: Prompter, system: str | None, item: Item, turn: str) -> str:
    """Text of a whole chat."""
    chat = [{"role": "system", "content": system}] if system else []
    chat += [{"role": "user", "content": item.question}, {"role": "assistant", "content": turn}]
    return cast(str, prompter.tokenizer.apply_chat_template(chat, tokenize=False))


def _ids(prompter: Prompter, text: str) -> list[int]:
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
