"""Log-probs of selected tokens under one model.

Only the hidden states that predict a selected token enter the output embedding, a block at a time:
no tensor of shape (batch, tokens, vocabulary) is ever built.

Shapes: N selected tokens of a pass, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    states at selected positions, by sequence: (positions, D), on the CPU."""

    head: nn.Linear
    transform: LogitTransform
    hidden: dict[int, Tensor]
    words: int | None
    """Words of the tokenizer; empty: all that both heads have."""


def selected_logprobs(
    model: nn.Module,
    contexts_ids: Sequence[Sequence[int]],
    spans: Sequence[Sequence[tuple[int, int]]],
    temperature: float,
    tokens_per_batch: int,
    progress: Progress | None = None,
) -> list[list[FLOATS]]:
    """Return log p(ids[start:end] | ids before each) for every span of every context, in order.

    `model` is a causal language model or a PEFT wrapper of one; it computes in eval mode. Logits
    are divided by `temperature`; log-sum-exp is taken in float32. The batches
    (`rlt_core.scoring.passes`) and the number of logits at a time change results by rounding only.
    Arrays are float32, one per span, as long as the span. Raises ValueError for a span outside its
    context or one that begins at 0, where nothing precedes the token.
    """
    scores = select(model, contexts_ids, spans, temperature, tokens_per_batch, progress=progress)
    return [
        [span.logprobs for span in each.split([end - start for start, end in of_context])]
        for each, of_context in zip(scores, spans, strict=True)
    ]


def select(
    model: nn.Module,
    contexts_ids: Sequence[Sequence[int]],
    spans: Sequence[Sequence[tuple[int, int]]],
    temperature: float,
    tokens_per_batch: int,
    *,
    ranks: bool = False,
    kept: dict[int, Tensor] | None = None,
    kl_to: States | None = None,
    progress: Progress | None = None,
) -> list[HeadScores]:
    """Return the scores of each context's spans, one after another; see `selected_logprobs`.

    `kept` receives the hidden states that predict them, by context; `kl_to`: those of another model
    at the same tokens, to which KL over the tokenizer's words is computed (`head_kl`).
    """
    targets = [_targets(len(ids), each) for ids, each in zip(contexts_ids, spans, strict=True)]
    head, transform = decoder_and_head(model)[1], logit_transform(model)
    nothing = np.empty(0, np.float32)
    unselected = HeadScores(
        nothing,
        surprisal=nothing if ranks else None,
        ranks=np.empty(0, np.int64) if ranks else None,
        kl=nothing if kl_to else None,
    )
    found = [unselected] * len(contexts_ids)
    passes = hidden_states(
        model, contexts_ids, [where - 1 for where in targets], tokens_per_batch, progress=progress
    )
    with torch.no_grad(), eval_mode(model):
        for indices, hidden_ND in passes:
            ids = [np.asarray(contexts_ids[i])[targets[i]] for i in indices]
            targets_N = torch.from_numpy(np.concatenate(ids)).to(hidden_ND.device)
            scores = head_logprobs(
                head, hidden_ND, targets_N, temperature, transform=transform, ranks=ranks
            )
            if kl_to is not None:
                other_ND = torch.cat([kl_to.hidden[i] for i in indices]).to(hidden_ND.device)
                kl = head_kl(
                    (head, kl_to.head), (hidden_ND, other_ND), temperature,
                    transforms=(transform, kl_to.transform), words=kl_to.words,
                )  # fmt: skip
                scores = replace(scores, kl=kl)
            sizes = [len(each) for each in ids]
            for i, part in zip(indices, scores.split(sizes), strict=True):
                found[i] = part
            if kept is not None:
                kept |= dict(zip(indices, hidden_ND.cpu().split(sizes), strict=True))
    return found


def _targets(length: int, spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Positions of the spans' tokens."""
    for start, end in spans:
        if not (0 <= start <= end <= length) or (start == 0 and end > 0):
            raise ValueError(f"span {start}:{end} in a context of {length} tokens")
    ranges = [np.arange(start, end) for start, end in spans if end > start]
    return np.concatenate(ranges) if ranges else np.empty(0, np.int64)
