"""Log-probs of selected tokens under one model.

Sequences of similar length share a forward pass of bounded size. Only the hidden states that
predict a selected token enter the output embedding, a chunk at a time: no tensor of shape (batch,
tokens, vocabulary) is ever built.

Shapes: B sequences of a pass, T positions, D width, N selected tokens of a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlt_core.progress import Progress
from rlt_core.scoring.lm_head import FLOATS, HeadScores, LogitTransform, head_kl, head_logprobs

CPU_TOKENS = 2048
"""Most tokens of a pass on a CPU: activations that fit its caches halve the time."""


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
    are divided by `temperature`; log-sum-exp is taken in float32. Batches and chunks change results
    by rounding only. Arrays are float32, one per span, as long as the span. Raises ValueError for a
    span outside its context or one that begins at 0, where nothing precedes the token.
    """
    scores = select(model, contexts_ids, spans, temperature, tokens_per_batch, progress=progress)
    return [
        np.split(each.logprobs, np.cumsum([end - start for start, end in of_context])[:-1])
        if of_context
        else []
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

    A pass has at most `tokens_per_batch` tokens, padding included, unless it is a single sequence.
    `kept` receives the hidden states that predict the tokens, by context; `kl_to`: those of another
    model at the same tokens, to which KL over the tokenizer's words is computed (`head_kl`).
    Progress counts tokens.
    """
    targets = [_targets(len(ids), each) for ids, each in zip(contexts_ids, spans, strict=True)]
    (decoder, head), transform = decoder_and_head(model), logit_transform(model)
    device, progress = next(decoder.parameters()).device, progress or Progress()
    if device.type == "cpu":
        tokens_per_batch = min(tokens_per_batch, CPU_TOKENS)
    nothing: Any = np.empty(0, np.float32)
    ranked, compared = nothing if ranks else None, nothing if kl_to else None
    found = [HeadScores(nothing, ranked, ranked, compared)] * len(contexts_ids)
    # Tokens from the last selected one on have no effect on the log-probs.
    lengths = [int(where.max()) if where.size else 0 for where in targets]
    done = 0
    for batch in length_batches(lengths, tokens_per_batch):
        progress.check()
        with torch.no_grad(), eval_mode(model):
            ids = [contexts_ids[i][: lengths[i]] for i in batch]
            hidden_ND = _hidden(decoder, ids, [targets[i] - 1 for i in batch])
            wanted = [np.asarray(contexts_ids[i])[targets[i]] for i in batch]
            targets_N = torch.from_numpy(np.concatenate(wanted)).to(device)
            scores = head_logprobs(
                head, hidden_ND, targets_N, temperature, transform=transform, ranks=ranks
            )
            if kl_to is not None:
                other_ND = torch.cat([kl_to.hidden[i] for i in batch]).to(device)
                kl = head_kl(
                    (head, kl_to.head), (hidden_ND, other_ND), temperature,
                    transforms=(transform, kl_to.transform), words=kl_to.words,
                )  # fmt: skip
                scores = replace(scores, kl=kl)
        ends = np.cumsum([len(each) for each in wanted])
        for i, size, end in zip(batch, map(len, wanted), ends, strict=True):
            found[i] = scores.part(end - size, end)
            if kept is not None:
                kept[i] = hidden_ND[end - size : end].cpu()
        done += sum(lengths[i] for i in batch)
        progress.report(done, sum(lengths), {})
    return found


def _targets(length: int, spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Positions of the spans' tokens."""
    for start, end in spans:
        if not (0 <= start <= end <= length) or (start == 0 and end > 0):
            raise ValueError(f"span {start}:{end} in a context of {length} tokens")
    return np.concatenate([np.empty(0, np.int64), *(np.arange(*span) for span in spans)])


def length_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Yield indices of sequences in batches of similar length, longest first, without empty ones.

    A batch padded to its longest sequence has at most `tokens_per_batch` tokens, unless it is a
    single sequence.
    """
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i])
    while order:
        size = max(1, tokens_per_batch // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def _hidden(
    decoder: nn.Module, ids: Sequence[Sequence[int]], positions: Sequence[NDArray[np.int64]]
) -> Tensor:
    """Last hidden states (N, D) at the positions of each sequence, one sequence after another.

    Attention is causal, so no token sees the padding after it: with neither mask nor explicit
    positions, attention keeps its fast path.
    """
    device = next(decoder.parameters()).device
    ids_BT = nn.utils.rnn.pad_sequence([torch.tensor(each) for each in ids], batch_first=True)
    hidden_BTD = decoder(input_ids=ids_BT.to(device), use_cache=False).last_hidden_state
    rows = np.repeat(np.arange(len(ids)), [each.size for each in positions])
    places = (torch.from_numpy(each).to(device) for each in (rows, np.concatenate(positions)))
    return cast(Tensor, hidden_BTD[tuple(places)])


# ---------------------------------------------------------------- models
def decoder_and_head(model: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """Return the transformer without its output embedding, and that embedding, both with their
    adapters (LoRA)."""
    causal = _causal(model)
    return causal.get_decoder(), cast(nn.Linear, causal.get_output_embeddings())


def logit_transform(model: nn.Module) -> LogitTransform:
    """Return the model's transform of the logits of its output embedding."""
    return LogitTransform.of(_causal(model).config.get_text_config())


def _causal(model: nn.Module) -> PreTrainedModel:
    unwrap = getattr(model, "get_base_model", None)  # a PEFT wrapper's
    return cast(PreTrainedModel, unwrap() if unwrap else model)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Turn dropout off; restore the mode of every module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
