"""Rewards of whole batches, ours against a plain loop:
`python -m infra.benchmarks.reward.throughput CASE`.

`tiny`: the `tiny` profile's model shape, 16 questions with 64 completions each. `smollm2`:
SmolLM2-135M-Instruct in both roles, one question with 16 completions of 512 tokens, in the same
number format both ways. Both from texts and token ids to rewards, alternated, best of REPEATS; the
rewards are compared, so that both did the same work: exit 1 if they differ by 1e-3 in float32.
The plain loop does what the RLT authors' code does (`plain.py`); "texts read once" without its
repeated tokenising.
"With rivals" is what trace-scoring runs: ranks and surprisal besides. Share of peak: needed work
(`work.py` says what counts) over our seconds and the best matrix product of the same process.

On a GPU `smollm2` runs in bf16, and `qwen7b` scores four sequences of 8,192 tokens with a random
model of Qwen2.5-7B's shape. No GPU was at hand: that part has not been run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from infra.benchmarks.reward.cases import (
    Case,
    device_and_dtype,
    smollm2_case,
    smollm2_folder,
    tiny_case,
)
from infra.benchmarks.reward.plain import reading_often, reading_once
from infra.benchmarks.reward.work import Work, needed, peak, timed
from rlt_core.config import RewardSpec
from rlt_core.reward import reward_parts
from rlt_core.scoring import Contexts, selected_logprobs, token_scores

REPEATS = 3
TOLERANCE = 1e-3
QWEN_7B = Qwen2Config(
    vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28,
    num_attention_heads=28, num_key_value_heads=4, max_position_embeddings=32_768,
    tie_word_embeddings=False,
)  # fmt: skip


# ---------------------------------------------------------------- ours
def contexts_of(case: Case) -> list[Contexts]:
    """Both contexts of every item."""
    return [
        Contexts(
            case.prompter.student_context(item.question, item.think_ids, item.solution),
            case.prompter.teacher_context(item.question, item.solution, item.think_ids),
        )
        for item in case.items
    ]


def our_rewards(case: Case) -> list[float]:
    """Rewards of the items, a call a model."""
    contexts, spec = contexts_of(case), RewardSpec(temperature=case.temperature)
    student = selected_logprobs(
        case.student,
        [each.student.ids for each in contexts],
        [[each.student.think, each.solution] for each in contexts],
        case.temperature,
        case.tokens_per_batch,
    )
    teacher = selected_logprobs(
        case.teacher,
        [each.teacher.ids for each in contexts],
        [[each.teacher.think] for each in contexts],
        case.temperature,
        case.tokens_per_batch,
    )
    return [
        reward_parts(solution, think, theirs, True, spec).reward
        for (think, solution), (theirs,) in zip(student, teacher, strict=True)
    ]


def rewards_with_rivals(case: Case) -> list[float]:
    """The same by way of trace-scoring's function."""
    spec = RewardSpec(temperature=case.temperature)
    scores = token_scores(
        contexts_of(case),
        lambda: nullcontext(case.student),
        lambda: nullcontext(case.teacher),
        spec,
        case.tokens_per_batch,
        ranks=True,
    )
    return [
        reward_parts(s.student_solution, s.student_think, s.teacher_think, True, spec).reward
        for s in scores
    ]


def work_of(case: Case) -> Work:
    """Of both models."""
    contexts = contexts_of(case)
    return needed(
        case.student,
        [each.student.ids for each in contexts],
        [[each.student.think, each.solution] for each in contexts],
    ) + needed(
        case.teacher,
        [each.teacher.ids for each in contexts],
        [[each.teacher.think] for each in contexts],
    )


# ---------------------------------------------------------------- comparison
PLAIN = "plain loop"
WAYS: dict[str, Callable[[Case], list[float]]] = {
    PLAIN: reading_often,
    "texts read once": reading_once,
    "ours": our_rewards,
    "ours, with rivals": rewards_with_rivals,
}


def compare(case: Case, repeats: int) -> bool:
    """Print the table; whether rewards agree."""
    device, dtype = case.student.device.type, str(case.student.dtype).removeprefix("torch.")
    tokens = sum(len(each.student.ids) + len(each.teacher.ids) for each in contexts_of(case))
    print(f"{len(case.items)} completions, {tokens:,} tokens in both contexts; {device}, {dtype}")
    best_product = peak(device, dtype)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    rewards: dict[str, list[float]] = {}
    for _ in range(repeats):
        for way, function in WAYS.items():
            spent, rewards[way] = timed(partial(function, case))
            seconds[way].append(spent)
    best_product = max(best_product, peak(device, dtype))
    plain, work = min(seconds[PLAIN]), work_of(case)
    print(f"best matrix product: {best_product / 1e9:,.0f} GFLOP/s")
    print(
        f"needed: {work.alone / 1e9:,.0f} GFLOP; {work.shared / 1e9:,.0f} with shared prompts once"
    )
    print(f"{'':<20}{'seconds':>9}{'traces/s':>10}{'ratio':>8}{'share of peak':>16}{'shared':>8}")
    for way, each in seconds.items():
        least = min(each)
        shares = (operations / least / best_product for operations in (work.alone, work.shared))
        alone, shared = (f"{share:.1%}" for share in shares)
        print(
            f"{way:<20}{least:9.2f}{len(case.items) / least:10.1f}{plain / least:8.1f}"
            f"{alone:>16}{shared:>8}"
        )
    gap = max(abs(a - b) for a, b in zip(rewards[PLAIN], rewards["ours"], strict=True))
    print(f"largest difference of rewards: {gap:.1e}")
    return gap < TOLERANCE or dtype != "float32"


def qwen7b(sequences: int, length: int) -> None:
    """Our seconds and share of peak with a random model on a GPU, in bf16."""
    best_product = peak("cuda", "bfloat16")
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(QWEN_7B, dtype=torch.bfloat16).eval()
    ids = torch.randint(QWEN_7B.vocab_size, (sequences, length)).tolist()
    spans = [[(length // 8, length)]] * sequences
    ways = [timed(lambda: selected_logprobs(model, ids, spans, 0.7, 32_768)) for _ in range(3)]
    least, work = min(seconds for seconds, _ in ways), needed(model, ids, spans)
    print(
        f"{sequences} x {length} tokens: {least:.2f} s, {work.alone / least / 1e12:.0f} TFLOP/s, "
        f"{work.alone / least / best_product:.1%} of {best_product / 1e12:.0f} TFLOP/s"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=("tiny", "smollm2", "qwen7b"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--questions", type=int, default=16, help="of tiny")
    parser.add_argument("--group", type=int, help="completions a question: 64 of tiny, else 16")
    parser.add_argument("--think-tokens", type=int, default=512, help="of smollm2")
    parser.add_argument("--model", type=Path, help="SmolLM2's folder, if it is imported already")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(f"{options.case}, {options.threads} threads, best of {options.repeats}")
    if options.case == "qwen7b":
        qwen7b(4, 8192)
        return 0
    if options.case == "tiny":
        return not compare(tiny_case(options.questions, options.group or 64), options.repeats)
    device, dtype = device_and_dtype()
    with smollm2_folder(options.model) as folder:
        case = smollm2_case(folder, options.group or 16, options.think_tokens, dtype, device)
        return not compare(case, options.repeats)


if __name__ == "__main__":
    sys.exit(main())
