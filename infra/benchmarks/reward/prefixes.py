"""Where sharing prefixes pays: `python -m infra.benchmarks.reward.prefixes [--quick]`.

Log-probs of completions under one model: groups of completions behind a prompt of their own, over
lengths of prompt and completion and sizes of group, as many groups as `CASE_TOKENS` hold, at most
`GROUPS`; shapes of which not one fits are left out. Sharing on and off, alternated, best of
REPEATS; the automatic choice is read off the calls that the decoder gets, and is right if its way
took at most a tenth longer than the better one. Models: the `tiny` profile's, and SmolLM2's shape
with a fifth of its layers and of its vocabulary, both random, float32.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from infra.benchmarks.reward.work import timed
from rlt_core.config import ScratchModel
from rlt_core.formats import load_format
from rlt_core.models import new_model, tiny_tokenizer
from rlt_core.scoring import selected_logprobs
from rlt_core.scoring.passes import decoder_and_head

PROMPTS, COMPLETIONS, GROUP_SIZES = (16, 64, 256, 1024), (16, 64, 256, 512), (4, 16, 64)
QUICK = ((16, 256), (16, 64), (4, 16))
GROUPS = 4
CASE_TOKENS = {"tiny": 65_536, "smollm2, 6 layers": 12_288}
"""Of all contexts of a shape at most."""
REPEATS = 3
SLACK = 1.1
SMOLLM2_FIFTH = LlamaConfig(
    vocab_size=9_830, hidden_size=576, intermediate_size=1536, num_hidden_layers=6,
    num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048,
    tie_word_embeddings=True,
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Lengths in tokens."""

    prompt: int
    completion: int
    group: int
    groups: int


@dataclass(frozen=True)
class Outcome:
    """Seconds of a shape both ways, and what the automatic choice was."""

    on: float
    off: float
    chosen: bool

    @property
    def right(self) -> bool:
        return (self.on if self.chosen else self.off) <= SLACK * min(self.on, self.off)


def models() -> dict[str, PreTrainedModel]:
    """By name."""
    tokenizer = tiny_tokenizer(load_format("tiny"))
    tiny = new_model(ScratchModel(max_positions=2048), tokenizer)
    return {"tiny": tiny, "smollm2, 6 layers": LlamaForCausalLM(SMOLLM2_FIFTH).eval()}


def shapes(quick: bool, most_tokens: int) -> list[Shape]:
    """Those of which at least one group fits."""
    grid = QUICK if quick else (PROMPTS, COMPLETIONS, GROUP_SIZES)
    fitting = []
    for prompt, completion, group in itertools.product(*grid):
        groups = min(GROUPS, most_tokens // (group * (prompt + completion)))
        if groups:
            fitting.append(Shape(prompt, completion, group, groups))
    return fitting


def outcome(model: PreTrainedModel, shape: Shape, repeats: int) -> Outcome:
    """Both ways, timed in turn."""
    rng = Random("prefixes")
    vocabulary = model.config.vocab_size

    def draw(tokens: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(tokens)]

    prompts = [draw(shape.prompt) for _ in range(shape.groups)]
    ids = [prompt + draw(shape.completion) for prompt in prompts for _ in range(shape.group)]
    spans = [[(shape.prompt, shape.prompt + shape.completion)]] * len(ids)

    def score(share: bool | None) -> object:
        return selected_logprobs(model, ids, spans, 1.0, 65_536, share_prefixes=share)

    chosen = shares_prefixes(model, lambda: score(None))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(repeats):
        for share, each in seconds.items():
            each.append(timed(partial(score, share))[0])
    return Outcome(min(seconds[True]), min(seconds[False]), chosen)


def shares_prefixes(model: PreTrainedModel, call: Callable[[], object]) -> bool:
    """Whether the decoder is given cached states meanwhile."""
    cached = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        cached.append(kwargs.get("past_key_values") is not None)

    hook = decoder_and_head(model)[0].register_forward_pre_hook(note, with_kwargs=True)
    try:
        call()
    finally:
        hook.remove()
    return any(cached)


def main(arguments: Sequence[str] | None = None) -> None:
    """A table a model, and how often the choice was right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--quick", action="store_true", help="few shapes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for name, model in models().items():
        print(f"\n{name}, {options.threads} threads, best of {options.repeats}")
        print(
            f"{'prompt':>7}{'completion':>12}{'group':>7}{'groups':>8}{'on, s':>9}{'off, s':>9}"
            f"{'off/on':>8}  choice"
        )
        found = []
        for shape in shapes(options.quick, CASE_TOKENS[name]):
            each = outcome(model, shape, options.repeats)
            found.append(each)
            print(
                f"{shape.prompt:7}{shape.completion:12}{shape.group:7}{shape.groups:8}"
                f"{each.on:9.3f}{each.off:9.3f}{each.off / each.on:8.2f}  "
                f"{'on' if each.chosen else 'off'}{'' if each.right else ', wrong'}",
                flush=True,
            )
        right = sum(each.right for each in found)
        pays = sum(each.on * SLACK < each.off for each in found)
        auto, best = (
            sum(each.on if each.chosen else each.off for each in found),
            sum(min(each.on, each.off) for each in found),
        )
        print(
            f"{name}: right in {right} of {len(found)} shapes; sharing pays in {pays}; all shapes: "
            f"{auto:.1f} s as chosen, {best:.1f} s at best, {sum(e.off for e in found):.1f} s "
            f"never shared, {sum(e.on for e in found):.1f} s always"
        )


if __name__ == "__main__":
    main()
