"""Compare the reward of a batch of completions with a plain loop.

    python -m infra.benchmarks.reward [CASE]

CASE: `tiny` (the default) is the `tiny` profile's model shape with random weights, 16 questions
with 64 completions each. `smollm2` is SmolLM2-135M-Instruct as student and teacher, one question
with 16 completions of about 512 tokens. The name of a model in `rlt_core/estimate/published.json`
is that shape with random weights and the completions of `smollm2`.

Both ways start from the same texts and token ids, take turns, and the best of `--repeats` counts.
The plain loop does what the RLT authors' code does, without its garbage collections and cache
flushes: one completion at a time, eight texts encoded per completion (completion, explanation, chat
and solution to find spans; both chats to compare them; both once more to run the models), float32
logits of every position, log-softmax over the whole vocabulary. Exit status 1 if a reward differs
by 1e-3 in float32, 0.1 in bfloat16.

Shapes: T tokens of a text, V vocabulary.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import AutoModelForCausalLM
from transformers.models.qwen2 import Qwen2Config

from rlt_core.config import PackageModel, RewardSpec, ScratchModel
from rlt_core.data.generators.arithmetic import (
    DATA_ERROR_RATE,
    arithmetic_rows,
    graded_trace,
    operands_of,
)
from rlt_core.estimate.shapes import PUBLISHED
from rlt_core.models import (
    import_model,
    load_model,
    load_tokenizer,
    new_model,
    pick_device,
    save_model,
    tiny_tokenizer,
)
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.reward.formula import reward_parts
from rlt_core.scoring import ContextBuilder, token_scores

TOLERANCE = 1e-3
QUESTION = (
    "A farmer has 17 sheep and buys 25 more. Then he sells a third of them at the market in town. "
    "How many sheep does he have now?"
)
SOLUTION = "28"
SENTENCES = (
    "First we write down what the question gives and what it asks for",
    "A third of the flock goes away, so that two thirds of it remain with the farmer",
    "Wait, let me check that again, since the order of the steps matters here",
    "Now we multiply the length of a row by two, which gives what the question asks for",
)
Result = TypeVar("Result")


# ---------------------------------------------------------------- cases
@dataclass(frozen=True)
class Item:
    """An explanation to reward. Its text encodes to its ids, alone and inside its contexts."""

    question: str
    solution: str
    think: str


@dataclass(frozen=True)
class Case:
    """Two models and the explanations that they score."""

    student: PreTrainedModel
    teacher: PreTrainedModel
    renderer: Renderer
    items: list[Item]
    temperature: float
    tokens_per_batch: int


def tiny_case(questions: int, group: int) -> Case:
    """Return random models of the `tiny` profile's shape with worked sums.

    The two models have different seeds, so that swapping them changes the rewards.
    """
    tokenizer = tiny_tokenizer(load_format("tiny"))
    rng = Random("reward-benchmark")
    items = [
        Item(row.question, row.solution, graded_trace(operands, DATA_ERROR_RATE, rng))
        for row in arithmetic_rows(questions, seed=0)
        for operands in [operands_of(row.question)] * group
    ]
    student, teacher = (new_model(ScratchModel(seed=seed), tokenizer) for seed in (0, 1))
    renderer = Renderer(load_format("tiny"), tokenizer)
    return Case(student, teacher, renderer, items, temperature=1.0, tokens_per_batch=65536)


def model_case(folder: Path, group: int, think_tokens: int) -> Case:
    """Return one question with `group` explanations of real sentences; one model has both roles.

    It runs on a GPU in bfloat16 if there is one, else on the CPU in float32. The format is `rlt`
    with single line breaks: SmolLM2's tokenizer splits two of them if a word follows, so that the
    ids of a whole text would differ from those of its pieces.
    """
    format = load_format("rlt").model_copy(update={"separator": "\n", "padding": "\n"})
    renderer = Renderer(format, load_tokenizer(folder))
    rng = Random("reward-benchmark")
    items = [Item(QUESTION, SOLUTION, _prose(renderer, think_tokens, rng)) for _ in range(group)]
    device = pick_device("auto")
    model = load_model(folder, "bfloat16" if device == "cuda" else "float32", device)
    return Case(model, model, renderer, items, temperature=0.7, tokens_per_batch=8192)


def _prose(renderer: Renderer, tokens: int, rng: Random) -> str:
    """Return sentences of about that many tokens. They end in a letter, since a full stop and the
    `<` of a tag would become one token."""
    sentences = [rng.choice(SENTENCES)]
    while len(renderer.encode(". ".join(sentences))) < tokens:
        sentences.append(rng.choice(SENTENCES))
    return ". ".join(sentences)


def random_model(config: dict[str, Any], folder: Path) -> int:
    """Write a Qwen2 model of a published shape, bfloat16 random weights; return its parameters."""
    names = set(Qwen2Config().to_dict()) - {"model_type"}
    shape = {name: value for name, value in config.items() if name in names}
    tokenizer = tiny_tokenizer(load_format("tiny"), config["max_position_embeddings"])
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    with torch.device(pick_device("auto")):
        model = AutoModelForCausalLM.from_config(Qwen2Config(**shape, **ends), dtype=torch.bfloat16)
    save_model(model, tokenizer, folder)
    return int(model.num_parameters())


# ---------------------------------------------------------------- two ways
def our_rewards(case: Case) -> list[float]:
    """Return the rewards as the pipeline computes them: one call per model."""
    builder, spec = (
        ContextBuilder(case.renderer, case.renderer), RewardSpec(temperature=case.temperature)
    )  # fmt: skip
    contexts = [builder.contexts(each.question, each.solution, each.think) for each in case.items]
    scores = token_scores(
        contexts, lambda: nullcontext(case.student), lambda: nullcontext(case.teacher), spec,
        case.tokens_per_batch, ranks=False,
    )  # fmt: skip
    return [
        reward_parts(s.student_solution, s.student_think, s.teacher_think, True, spec).reward
        for s in scores
    ]


def plain_reward(case: Case, item: Item) -> float:
    """Return the reward of one explanation as the plain loop computes it."""
    tokenizer, format = case.renderer.tokenizer, case.renderer.format

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def block(opening: str, text: str, closing: str) -> str:
        return f"{opening}{format.padding}{text}{format.padding}{closing}"

    def chat(system: str | None, *blocks: str) -> str:
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": item.question})
        turns.append({"role": "assistant", "content": format.separator.join(blocks)})
        return str(tokenizer.apply_chat_template(turns, tokenize=False))

    thought = block(format.thought_open, item.think, format.thought_close)
    explanation = block(format.explanation_open, item.think, format.explanation_close)
    solution = block(format.solution_open, item.solution, format.solution_close)
    student_text = chat(format.student_system, thought, solution)
    teacher_text = chat(format.teacher_system, solution, explanation)

    think_ids, solution_ids = encode(item.think), encode(item.solution)
    _find(encode(explanation), think_ids)
    student_ids = encode(student_text)
    in_student = _find(student_ids, think_ids)
    # The last occurrences: a prompt may contain the same tokens.
    in_solution = _find(student_ids, solution_ids, last=True)
    teacher_ids = encode(teacher_text)
    in_teacher = _find(teacher_ids, think_ids, last=True)
    assert teacher_ids[in_teacher] == encode(student_text)[in_student]
    student_T = all_logprobs(case.student, encode(student_text), case.temperature)
    teacher_T = all_logprobs(case.teacher, encode(teacher_text), case.temperature)
    spec = RewardSpec(temperature=case.temperature)
    parts = (student_T[in_solution], student_T[in_student], teacher_T[in_teacher])
    return reward_parts(*parts, closed=True, spec=spec).reward


def _find(ids: list[int], part: list[int], last: bool = False) -> slice:
    """Return where the part is, after a first search that only tells whether it is there."""
    starts = range(len(ids) - len(part) + 1)
    assert any(ids[i : i + len(part)] == part for i in starts)
    order = reversed(starts) if last else starts
    start = next(i for i in order if ids[i : i + len(part)] == part)
    return slice(start, start + len(part))


def all_logprobs(model: nn.Module, ids: Sequence[int], temperature: float) -> NDArray[np.float32]:
    """Return log p of each token given those before it, (T,); NaN for the first."""
    ids_T = torch.tensor(ids, device=next(model.parameters()).device)
    with torch.no_grad():
        logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0].float()
        logprobs_TV = torch.log_softmax(logits_TV / temperature, dim=-1)
        logprobs_T = logprobs_TV[:-1].gather(1, ids_T[1:, None])[:, 0]
    return np.concatenate([np.array([np.nan], np.float32), logprobs_T.cpu().numpy()])


# ---------------------------------------------------------------- comparison
def timed(function: Callable[[], Result]) -> tuple[float, Result]:
    """Return the seconds that a call takes, work queued on a GPU included, and its result."""
    started = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def compare(case: Case, repeats: int) -> tuple[float, float, float]:
    """Time both ways, in turn; return the best seconds of the plain loop and of ours, and the
    largest difference of a reward."""
    rounds = [
        (
            timed(lambda: [plain_reward(case, item) for item in case.items]),
            timed(lambda: our_rewards(case)),
        )
        for _ in range(repeats)
    ]
    (_, plain), (_, ours) = rounds[-1]
    gap = max(abs(a - b) for a, b in zip(plain, ours, strict=True))
    return min(plain[0] for plain, _ in rounds), min(ours[0] for _, ours in rounds), gap


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="?", default="tiny")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--questions", type=int, default=16, help="questions of `tiny`")
    parser.add_argument("--group", type=int, help="completions per question (64; models: 16)")
    parser.add_argument("--think-tokens", type=int, default=512, help="tokens of a completion")
    options = parser.parse_args(arguments)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        if options.case == "tiny":
            case = tiny_case(options.questions, options.group or 64)
        else:
            if options.case == "smollm2":
                import_model(PackageModel(), folder)
            else:
                random_model(json.loads(PUBLISHED.read_text())[options.case], folder)
            case = model_case(folder, options.group or 16, options.think_tokens)
        plain_s, ours_s, gap = compare(case, options.repeats)
    print(
        f"{options.case}, {len(case.items)} completions, {case.student.device.type}, "
        f"{case.student.dtype}, {torch.get_num_threads()} threads, best of {options.repeats}: "
        f"plain loop {plain_s:.2f} s, ours {ours_s:.2f} s, ratio {plain_s / ours_s:.1f}; rewards "
        f"differ by {gap:.1e} at most"
    )
    return int(gap > (TOLERANCE if case.student.dtype == torch.float32 else 0.1))


if __name__ == "__main__":
    sys.exit(main())
