"""Log-probs of selected tokens under one model.

Only the hidden states that predict a selected token enter the output embedding, a block at a time:
no tensor of shape (batch, tokens, vocabulary) is ever built.

Shapes: N selected tokens of a pass, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlt_core.progress import Progress
from rlt_core.scoring.lm_head import FLOATS, HeadScores, LogitTransform, head_kl, head_logprobs
from rlt_core.scoring.passes import decoder_and_head, eval_mode, hidden_states, logit_transform


@dataclass(frozen=True)
class States:
    """What full-vocabulary KL needs from a model that has been unloaded: its head, and its hidden
    states at selected positions, one tensor (positions, D) per sequence, on the CPU."""

    head: nn.Linear
    transform: LogitTransform
    hidden: list[Tensor]
    words: int | None
    """Words of the tokenizer; empty: all that both heads have."""


@dataclass(frozen=True)
class Selected:
    """One array per sequence, with one value per selected token."""

    logprobs: list[FLOATS]
    surprisal: list[FLOATS] | None
    """At temperature 1; with `ranks`."""
    ranks: list[NDArray[np.int64]] | None
    """1: the likeliest word."""
    states: States | None
    kl: list[FLOATS] | None


def selected_logprobs(
    model: nn.Module,
    contexts_ids: Sequence[Sequence[int]],
    spans: Sequence[Sequence[tuple[int, int]]],
    temperature: float,
    tokens_per_batch: int,
    *,
    block_logits: int | None = None,
    progress: Progress | None = None,
) -> list[list[FLOATS]]:
    """Return log p(ids[start:end] | ids before each) for every span of every context, in order.

    `model` is a causal language model or a PEFT wrapper of one; it computes in eval mode. Logits
    are divided by `temperature`; log-sum-exp is taken in float32. The batches
    (`rlt_core.scoring.passes`) and the number of logits at a time change results by rounding only.
    Arrays are float32, one per span, as long as the span. Raises ValueError for a span outside its
    context or one that begins at 0, where nothing precedes the token.
    """
    selected = select(
        model,
        contexts_ids,
        [_targets(len(ids), each) for ids, each in zip(contexts_ids, spans, strict=True)],
        temperature,
        tokens_per_batch,
        block_logits=block_logits,
        progress=progress,
    )
    return [
        cut(values, [end - start for start, end in each]) if each else []
        for values, each in zip(selected.logprobs, spans, strict=True)
    ]


def select(
    model: nn.Module,
    contexts_ids: Sequence[Sequence[int]],
    targets: Sequence[NDArray[np.int64]],
    temperature: float,
    tokens_per_batch: int,
    *,
    ranks: bool = False,
    keep_states: bool = False,
    words: int | None = None,
    kl_to: States | None = None,
    block_logits: int | None = None,
    progress: Progress | None = None,
) -> Selected:
    """Return the log-probs of the tokens at `targets` (positions > 0); see `selected_logprobs`.

    `keep_states` keeps the hidden states that predict them; `kl_to`: those of another model at the
    same tokens, to which KL over the tokenizer's `words` is computed (`head_kl`).
    """
    head, transform = decoder_and_head(model)[1], logit_transform(model)
    names = ("logprobs", "surprisal", "ranks", "kl")
    found: dict[str, list[NDArray]] = {
        name: [np.empty(0, np.float32) for _ in contexts_ids] for name in names
    }
    hidden = [torch.empty(0) for _ in contexts_ids]
    passes = hidden_states(
        model,
        contexts_ids,
        [where - 1 for where in targets],
        tokens_per_batch,
        progress=progress,
    )
    with torch.no_grad(), eval_mode(model):
        for indices, hidden_ND in passes:
            ids = [np.asarray(contexts_ids[i])[targets[i]] for i in indices]
            targets_N = torch.from_numpy(np.concatenate(ids)).to(hidden_ND.device)
            scores = head_logprobs(
                head, hidden_ND, targets_N, temperature,
                transform=transform, ranks=ranks, block_logits=block_logits,
            )  # fmt: skip
            sizes = [len(each) for each in ids]
            columns = _columns(scores)
            if kl_to is not None:
                other_ND = torch.cat([kl_to.hidden[i] for i in indices])
                columns["kl"] = _kl((head, hidden_ND, transform), kl_to, other_ND, temperature)
            for name, values in columns.items():
                for i, part in zip(indices, cut(values, sizes), strict=True):
                    found[name][i] = part
            if keep_states:
                for i, part in zip(indices, hidden_ND.cpu().split(sizes), strict=True):
                    hidden[i] = part
    return Selected(
        logprobs=found["logprobs"],
        surprisal=found["surprisal"] if ranks else None,
        ranks=found["ranks"] if ranks else None,
        states=States(head, transform, hidden, words) if keep_states else None,
        kl=found["kl"] if kl_to else None,
    )


def cut(values: NDArray, sizes: Sequence[int]) -> list[NDArray]:
    """Split an array into pieces of these sizes."""
    return np.split(values, np.cumsum(sizes)[:-1])


def _columns(scores: HeadScores) -> dict[str, NDArray]:
    columns = {"logprobs": scores.logprobs, "surprisal": scores.surprisal, "ranks": scores.ranks}
    return {name: values for name, values in columns.items() if values is not None}


def _kl(
    model: tuple[nn.Linear, Tensor, LogitTransform],
    other: States,
    other_ND: Tensor,
    temperature: float,
) -> FLOATS:
    head, hidden_ND, transform = model
    return head_kl(
        (head, other.head),
        (hidden_ND, other_ND.to(hidden_ND.device)),
        temperature,
        transforms=(transform, other.transform),
        words=other.words,
    )


def _targets(length: int, spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Positions of the spans' tokens."""
    for start, end in spans:
        if not (0 <= start <= end <= length) or (start == 0 and end > 0):
            raise ValueError(f"span {start}:{end} in a context of {length} tokens")
    ranges = [np.arange(start, end) for start, end in spans if end > start]
    return np.concatenate(ranges) if ranges else np.empty(0, np.int64)
