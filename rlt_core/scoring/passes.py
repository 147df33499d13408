"""Forward passes: which sequences go through the decoder together, and which states are kept.

A pass returns the hidden states of selected positions only. Sequences of similar length share a
pass of bounded size, padded, or packed if attention supports packed sequences.

Shapes: B sequences of a pass, T positions, D width, N selected positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlt_core.progress import Progress
from rlt_core.scoring.lm_head import LogitTransform

INDICES = NDArray[np.int64]

CPU_TOKENS = 2048
"""Most tokens of a pass on a CPU: activations that fit its caches halve the time."""


@dataclass(frozen=True)
class _Selection:
    """A sequence and the positions whose hidden states are selected, in the caller's order."""

    index: int
    ids: Sequence[int]
    positions: INDICES

    @property
    def end(self) -> int:
        """Tokens to compute: those after the last selected position have no effect on it."""
        return int(self.positions.max()) + 1


def hidden_states(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    positions: Sequence[INDICES],
    tokens_per_batch: int,
    *,
    progress: Progress | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the last hidden states at the selected positions, pass by pass.

    Each item is (indices of sequences, hidden (N, D)): the positions of the first of these
    sequences, then those of the next. Sequences without positions are left out. A pass has at most
    `tokens_per_batch` tokens, padding included, unless it is a single sequence. `model`: in eval
    mode. Progress counts tokens.
    """
    progress = progress or Progress()
    decoder = decoder_and_head(model)[0]
    if next(decoder.parameters()).device.type == "cpu":
        tokens_per_batch = min(tokens_per_batch, CPU_TOKENS)
    requests = [
        _Selection(i, ids, where)
        for i, (ids, where) in enumerate(zip(sequences, positions, strict=True))
        if where.size
    ]
    done, total = 0, sum(request.end for request in requests)
    for places in length_batches([request.end for request in requests], tokens_per_batch):
        progress.check()
        batch = [requests[place] for place in places]
        hidden_BTD = _forward(decoder, [request.ids[: request.end] for request in batch])
        yield [request.index for request in batch], _selected(hidden_BTD, batch)
        done += sum(request.end for request in batch)
        progress.report(done, total, {})


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


def _selected(hidden_BTD: Tensor, batch: Sequence[_Selection]) -> Tensor:
    """Hidden states (N, D) at the positions of each request, one request after another."""
    rows = np.repeat(np.arange(len(batch)), [r.positions.size for r in batch])
    columns = np.concatenate([r.positions for r in batch])
    if len(hidden_BTD) == 1 < len(batch):  # packed
        starts = np.cumsum([0, *(r.end for r in batch)])[:-1]
        rows, columns = np.zeros_like(rows), columns + starts[rows]
    device = hidden_BTD.device
    return hidden_BTD[torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)]


def _forward(decoder: nn.Module, parts: Sequence[Sequence[int]]) -> Tensor:
    """Last hidden states of sequences: (B, T, D) padded on the right, or packed (1, tokens, D).

    Attention is causal, so no token sees the padding after it: with neither mask nor explicit
    positions, attention keeps its fast path.
    """
    device = next(decoder.parameters()).device
    tensors = [torch.tensor(part) for part in parts]
    if len(parts) > 1 and _takes_packed(decoder):
        places = torch.cat([torch.arange(len(part)) for part in parts])
        ids, extra = torch.cat(tensors)[None], {"position_ids": places[None].to(device)}
    else:
        ids, extra = nn.utils.rnn.pad_sequence(tensors, batch_first=True), {}
    output = decoder(input_ids=ids.to(device), use_cache=False, **extra)
    return cast(Tensor, output.last_hidden_state)


def _takes_packed(decoder: nn.Module) -> bool:
    """Whether attention has kernels for packed sequences (varlen)."""
    implementation = cast(PreTrainedModel, decoder).config._attn_implementation
    return "flash_attention" in str(implementation)


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
