"""Forward passes: which tokens go through the decoder together, and what comes out.

Only hidden states of selected positions leave a pass. Sequences of like length share a pass of
bounded size, or lie one behind another where attention takes packed sequences; what many of them
begin with may be computed once.

Shapes: B sequences of a pass, T positions, D width, N selected positions, P of a shared prefix.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from rlt_core.progress import Progress
from rlt_core.scoring.lm_head import LogitTransform

INDICES = NDArray[np.int64]

CPU_TOKENS = 2048
"""Tokens of a pass on a CPU at most: activations that fit its caches halve the time."""
MASK_FLOPS = 2.0
"""What a query behind a shared prefix costs more in attention, which needs a mask there and loses
its fastest path: FLOPs a layer, times attention's width and the squared length of what follows."""
SHARING_FLOPS = 3.5e7
"""What the further passes of a group cost, in FLOPs a layer. Both fitted on two CPU cores."""


@dataclass(frozen=True)
class _Request:
    """A sequence and the positions whose hidden states are wanted, in order of the caller."""

    index: int
    ids: Sequence[int]
    positions: INDICES

    @property
    def first(self) -> int:
        return int(self.positions.min())

    @property
    def end(self) -> int:
        """What stands behind the last position cannot matter: it is not computed."""
        return int(self.positions.max()) + 1


def hidden_states(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    positions: Sequence[INDICES],
    tokens_per_batch: int,
    *,
    share_prefixes: bool | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Last hidden states at the wanted positions, pass by pass.

    Yields (indices of sequences, hidden (N, D)): the positions of the first of these sequences,
    then those of the next. Sequences without positions never appear. A pass has at most
    `tokens_per_batch` tokens, padding included, unless it is a single sequence. What groups of
    sequences have in common before their first position is computed once if `share_prefixes`, and
    where it pays if that is None. `model`: in eval mode. Progress counts tokens.
    """
    progress = progress or Progress()
    decoder = decoder_and_head(model)[0]
    if next(decoder.parameters()).device.type == "cpu":
        tokens_per_batch = min(tokens_per_batch, CPU_TOKENS)
    requests = [
        _Request(i, ids, where)
        for i, (ids, where) in enumerate(zip(sequences, positions, strict=True))
        if where.size
    ]
    groups, alone = _prefix_groups(requests, share_prefixes, decoder)
    done, total = 0, sum(request.end for request in requests)
    for batch, hidden_ND in _all_passes(decoder, groups, alone, tokens_per_batch, progress):
        yield [request.index for request in batch], hidden_ND
        done += sum(request.end for request in batch)
        progress.report(done, total, {})


def _all_passes(
    decoder: nn.Module,
    groups: Sequence[list[_Request]],
    alone: Sequence[_Request],
    budget: int,
    progress: Progress,
) -> Iterator[tuple[list[_Request], Tensor]]:
    for numbers in length_batches([request.end for request in alone], budget):
        progress.check()
        batch = [alone[i] for i in numbers]
        yield batch, _wanted(_forward(decoder, [r.ids[: r.end] for r in batch]), batch)
    for numbers in length_batches([group[0].first for group in groups], budget):
        progress.check()
        some = [groups[i] for i in numbers]
        caches = _prefix_caches(decoder, [group[0].ids[: group[0].first] for group in some])
        for group, cache in zip(some, caches, strict=True):
            for rows in length_batches([r.end - r.first for r in group], budget):
                progress.check()
                batch = [group[i] for i in rows]
                hidden_BTD = _forward(decoder, [r.ids[r.first : r.end] for r in batch], cache)
                yield batch, _wanted(hidden_BTD, batch, offset=batch[0].first)


def length_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices of sequences in batches of like length, longest first; empty ones are left out.

    A batch padded to its longest sequence has at most `tokens_per_batch` tokens, unless it is a
    single sequence.
    """
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i])
    while order:
        size = max(1, tokens_per_batch // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def _wanted(hidden_BTD: Tensor, batch: Sequence[_Request], offset: int = 0) -> Tensor:
    """Hidden states (N, D) at the positions of each request, one request after the other."""
    rows = np.repeat(np.arange(len(batch)), [r.positions.size for r in batch])
    columns = np.concatenate([r.positions for r in batch]) - offset
    if len(hidden_BTD) == 1 < len(batch):  # packed
        starts = np.cumsum([0, *(r.end for r in batch)])[:-1]
        rows, columns = np.zeros_like(rows), columns + starts[rows]
    device = hidden_BTD.device
    return hidden_BTD[torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)]


def _forward(
    decoder: nn.Module, parts: Sequence[Sequence[int]], cache: Cache | None = None
) -> Tensor:
    """Last hidden states of sequences: (B, T, D) padded on the right, or packed (1, tokens, D).

    Attention is causal, so no real token sees the padding behind it: with neither mask nor
    explicit positions, attention keeps its fast path.
    """
    device = next(decoder.parameters()).device
    tensors = [torch.tensor(part) for part in parts]
    if cache is None and len(parts) > 1 and _takes_packed(decoder):
        places = torch.cat([torch.arange(len(part)) for part in parts])
        ids, extra = torch.cat(tensors)[None], {"position_ids": places[None].to(device)}
    else:
        ids, extra = nn.utils.rnn.pad_sequence(tensors, batch_first=True), {}
    output = decoder(
        input_ids=ids.to(device), past_key_values=cache, use_cache=cache is not None, **extra
    )
    return cast(Tensor, output.last_hidden_state)


def _takes_packed(decoder: nn.Module) -> bool:
    """Whether attention has kernels for sequences that lie one behind another (varlen)."""
    implementation = cast(PreTrainedModel, decoder).config._attn_implementation
    return "flash_attention" in str(implementation)


# ---------------------------------------------------------------- shared prefixes
def _prefix_groups(
    requests: Sequence[_Request], share: bool | None, decoder: nn.Module
) -> tuple[list[list[_Request]], list[_Request]]:
    """Groups that share all tokens before their first position, and the other requests."""
    if share is False or not _has_plain_cache(decoder):
        return [], list(requests)
    by_prefix: dict[bytes, list[_Request]] = defaultdict(list)
    for request in requests:
        by_prefix[np.asarray(request.ids[: request.first], np.int64).tobytes()].append(request)
    weights, width = _layer_size(decoder)
    groups, alone = [], []
    for group in by_prefix.values():
        if group[0].first and len(group) > 1 and (share or _pays(group, weights, width)):
            groups.append(group)
        else:
            alone += group
    return groups, alone


def _pays(group: Sequence[_Request], weights: float, width: int) -> bool:
    """Whether the linear layers save more on the prefix than masked attention and passes cost."""
    prefix = group[0].first
    saved = 2 * weights * prefix * (len(group) - 1)
    masked = MASK_FLOPS * width * sum((request.end - prefix) ** 2 for request in group)
    return saved > masked + SHARING_FLOPS


def _layer_size(decoder: nn.Module) -> tuple[float, int]:
    """Weights of a layer, and the width of its attention."""
    config = cast(PreTrainedModel, decoder).config
    embedding = cast(PreTrainedModel, decoder).get_input_embeddings()
    outside = {id(weight) for weight in embedding.parameters()}
    weights = sum(each.numel() for each in decoder.parameters() if id(each) not in outside)
    head_width = getattr(config, "head_dim", None)
    width = config.num_attention_heads * head_width if head_width else config.hidden_size
    return weights / config.num_hidden_layers, width


def _has_plain_cache(decoder: nn.Module) -> bool:
    """Whether every layer attends to all that came before: no sliding windows, no states."""
    layers = DynamicCache(config=cast(PreTrainedModel, decoder).config).layers
    return all(type(layer) is DynamicLayer for layer in layers)


class _PrefixLayer(DynamicLayer):
    """Keys and values of one prefix, before those of any number of rows that follow it."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Prefix and new states (rows, heads, positions, width); the prefix alone is kept."""
        rows = key_states.shape[0]
        keys, values = (each.expand(rows, -1, -1, -1) for each in (self.keys, self.values))
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)


def _prefix_caches(decoder: nn.Module, prefixes: Sequence[Sequence[int]]) -> list[Cache]:
    """A cache a prefix, to be read by any number of passes."""
    cache = DynamicCache(config=cast(PreTrainedModel, decoder).config)
    device = next(decoder.parameters()).device
    ids = nn.utils.rnn.pad_sequence([torch.tensor(each) for each in prefixes], batch_first=True)
    decoder(input_ids=ids.to(device), past_key_values=cache, use_cache=True)
    layers = cast(list[DynamicLayer], cache.layers)
    filled = [(cast(Tensor, layer.keys), cast(Tensor, layer.values)) for layer in layers]
    return [
        Cache(
            layers=[
                _PrefixLayer(keys[row, None, :, : len(each)], values[row, None, :, : len(each)])
                for keys, values in filled
            ]
        )
        for row, each in enumerate(prefixes)
    ]


# ---------------------------------------------------------------- models
def decoder_and_head(model: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """The transformer without its output embedding, and that embedding.

    Adapters (LoRA) sit inside both.
    """
    causal = _causal(model)
    return causal.get_decoder(), cast(nn.Linear, causal.get_output_embeddings())


def logit_transform(model: nn.Module) -> LogitTransform:
    """What the model does to the logits of its output embedding."""
    return LogitTransform.of(_causal(model).config.get_text_config())


def _causal(model: nn.Module) -> PreTrainedModel:
    unwrap = getattr(model, "get_base_model", None)  # a PEFT wrapper's
    return cast(PreTrainedModel, unwrap() if unwrap else model)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off; every module's own mode is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
