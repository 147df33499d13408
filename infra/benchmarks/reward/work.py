"""Operations that a reward needs at least, and how many a second the machine can do.

Needed work, in floating-point operations, 2 a multiplication with addition:
- each weight of the decoder's linear layers, once a token;
- attention's two products, 4 * (heads * width of a head) * layers for each pair of a token and one
  that it sees, of which n tokens have n^2 / 2;
- the output embedding, once a selected position.
Tokens are those up to the last that predicts a selected one, padding excluded. "Shared" counts what
sequences have in common before the first position that predicts a selected token once.
Embedding, norms, rotations, activations and soft-maxes count nothing: they are overhead.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from rlt_core.scoring.passes import decoder_and_head

Result = TypeVar("Result")
Spans = Sequence[tuple[int, int]]
SIZES = {"cpu": (768, 1024, 1536, 2048, 3072), "cuda": (4096, 8192, 16384)}


@dataclass(frozen=True)
class Work:
    """Operations."""

    alone: float
    """Every sequence for itself."""
    shared: float
    """Common beginnings once."""

    def __add__(self, other: Work) -> Work:
        return Work(self.alone + other.alone, self.shared + other.shared)


def needed(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], spans: Sequence[Spans]
) -> Work:
    """Of log-probs of the spans' tokens under one model."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for ids, each in zip(sequences, spans, strict=True):
        first = min(start for start, _ in each) - 1
        groups[tuple(ids[:first])].append(max(end for _, end in each) - 1)
    selected = sum(end - start for each in spans for start, end in each)
    ends = [end for group in groups.values() for end in group]
    alone = _decoder(model, sum(ends), sum(end**2 for end in ends) / 2)
    tokens, pairs = 0, 0.0
    for prefix, group in groups.items():
        again = (len(group) - 1) * len(prefix)
        tokens += sum(group) - again
        pairs += (sum(end**2 for end in group) - again * len(prefix)) / 2
    head = 2 * decoder_and_head(model)[1].weight.numel() * selected
    return Work(alone + head, _decoder(model, tokens, pairs) + head)


def _decoder(model: PreTrainedModel, tokens: float, pairs: float) -> float:
    config = model.config
    layers = [each for each in decoder_and_head(model)[0].modules() if isinstance(each, nn.Linear)]
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    weights = sum(layer.weight.numel() for layer in layers)
    return 2 * weights * tokens + 4 * width * config.num_hidden_layers * pairs


def peak(device: str, dtype: str, repeats: int = 5) -> float:
    """Operations a second of the best product of two square matrices."""
    best = 0.0
    for size in SIZES[device]:
        a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in "ab")
        product = partial(torch.mm, a, b, out=torch.mm(a, b))
        seconds = [timed(product)[0] for _ in range(repeats)]
        best = max(best, 2 * size**3 / min(seconds))
    return best


def timed(function: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds until a GPU, too, has finished; and the result."""
    started = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, result
