"""From hidden states to log-probs: the output embedding, computed a block of logits at a time.

Shapes: N positions, D width, C positions of a chunk, W words of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear

FLOATS = NDArray[np.float32]

BLOCK_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Logits at a time: on a CPU, as many as its caches hold."""
BLOCK_WORDS = {"cpu": 1 << 11, "cuda": 1 << 15}
"""Words of a block. The rest of a block's size is positions: the weights are read once per chunk of
positions, so that larger chunks read them less often."""


@dataclass(frozen=True)
class LogitTransform:
    """A model's transform of its logits after the output embedding: first `scale`, then `softcap`.

    The trial at import compares it with the model itself (`rlt_core.scoring.trial`).
    """

    scale: float = 1.0
    """Factor (Cohere, Granite, Falcon-H1, MiniCPM3)."""
    softcap: float | None = None
    """softcap * tanh(logit / softcap) (Gemma 2)."""

    @classmethod
    def of(cls, config: Any) -> LogitTransform:
        """Read it from the fields of a model's text config that TRL's fused head uses
        (`trl.trainer.utils.add_fused_lm_head`), so that reward and loss have the same log-probs."""
        for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
            if (scale := getattr(config, name, None)) is not None:
                break
        else:
            scale = getattr(config, "logits_scaling", None) or 1.0
            if config.model_type != "hyperclovax":  # the one that multiplies by it
                scale = 1 / scale
        return cls(scale, getattr(config, "final_logit_softcapping", None))

    def __call__(self, logits: Tensor) -> Tensor:
        """Transform the logits of the output embedding in place."""
        if self.scale != 1:
            logits = logits.mul_(self.scale)
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits


PLAIN = LogitTransform()


@dataclass(frozen=True)
class HeadScores:
    """Scores of selected tokens from the output embedding, (N,)."""

    logprobs: FLOATS
    """log softmax(logits / temperature)[target]."""
    surprisal: FLOATS | None = None
    """-log softmax(logits)[target], at temperature 1."""
    ranks: NDArray[np.int64] | None = None
    """1 + the number of words with a larger logit."""
    kl: FLOATS | None = None
    """KL to another model over the vocabulary."""

    def split(self, sizes: Sequence[int]) -> list[HeadScores]:
        """Return the scores of successive groups of tokens of these sizes."""
        if not sizes:
            return []
        ends = np.cumsum(sizes)[:-1]
        columns = [
            [None] * len(sizes) if column is None else np.split(column, ends)
            for column in (self.logprobs, self.surprisal, self.ranks, self.kl)
        ]
        return [HeadScores(*group) for group in zip(*columns, strict=True)]


def head_logprobs(
    head: nn.Linear,
    hidden_ND: Tensor,
    targets_N: Tensor,
    temperature: float,
    *,
    transform: LogitTransform = PLAIN,
    ranks: bool = False,
) -> HeadScores:
    """Compute the log-probs of the targets, and with `ranks` their ranks and surprisal.

    The head computes logits in its own number format; everything after it is float32, `transform`
    first. The softmax includes all rows of the head, as the model's own does, padding beyond the
    tokenizer's vocabulary too. The log-sum-exp is accumulated over blocks of at most BLOCK_LOGITS
    logits, relative to the largest so far. A head that is not a plain linear layer (with adapters)
    computes whole rows of logits.
    """
    parts: dict[str, list[Tensor]] = {"logprobs": [], "surprisal": [], "ranks": []}
    rows = _rows(head, hidden_ND.device.type)
    for hidden_CD, targets_C in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True):
        target_C = torch.zeros(len(hidden_CD), device=hidden_CD.device)
        scaled, plain = _LogSumExp(target_C), _LogSumExp(target_C)
        above_C = torch.zeros_like(targets_C)
        guess_C = transform(_target_logits(head, hidden_CD, targets_C)) if ranks else None
        for start, logits_CW in _blocks(head, hidden_CD):
            logits_CW = transform(logits_CW)
            own_C = (targets_C >= start) & (targets_C < start + logits_CW.shape[1])
            place_C = (targets_C - start).clamp(0, logits_CW.shape[1] - 1)
            found_C = logits_CW.gather(1, place_C[:, None])[:, 0]
            target_C = torch.where(own_C, found_C, target_C)
            if guess_C is not None:
                # The guess may differ from the block's value by rounding: do not count the target.
                above_C += (logits_CW > guess_C[:, None]).sum(1, dtype=torch.int32)
                above_C -= (own_C & (found_C > guess_C)).long()
                if temperature != 1:
                    plain.add(logits_CW.clone(), 1.0)
            scaled.add(logits_CW, temperature)
            del logits_CW, found_C  # before the next block is made
        parts["logprobs"].append(target_C / temperature - scaled.value())
        if ranks:
            whole_C = scaled.value() if temperature == 1 else plain.value()
            parts["surprisal"].append(whole_C - target_C)
            parts["ranks"].append(above_C + 1)
    logprobs, surprisal, rank = (_joined(parts[name]) for name in parts)
    if logprobs is None:
        logprobs = np.empty(0, np.float32)
    return HeadScores(logprobs, surprisal, rank)


def head_kl(
    heads: tuple[nn.Linear, nn.Linear],
    hidden_ND: tuple[Tensor, Tensor],
    temperature: float,
    *,
    transforms: tuple[LogitTransform, LogitTransform] = (PLAIN, PLAIN),
    words: int | None = None,
) -> FLOATS:
    """Compute KL(p || q) over the vocabulary at each position, (N,), from both hidden states.

    sum_v p(v) (log p(v) - log q(v)) at the temperature, p the first model's; in one pass: with
    d = (x - y) / temperature of the logits x and y, it is E_p[d] - lse(x) + lse(y).

    Both distributions cover the first `words` words, the tokenizer's, renormalised: rows that pad a
    head to a round number represent no word, and two models of one tokenizer may have different
    numbers of them. Without `words`: all that both heads have.
    """
    parts = []
    (head_p, head_q), (all_p, all_q) = heads, hidden_ND
    (to_p, to_q) = transforms
    words = min(head_p.out_features, head_q.out_features, words or head_p.out_features)
    rows = min(_rows(head, all_p.device.type) for head in heads)
    for hidden_p, hidden_q in zip(all_p.split(rows), all_q.split(rows), strict=True):
        zero_C = torch.zeros(len(hidden_p), device=hidden_p.device)
        p, q = _LogSumExp(zero_C), _LogSumExp(zero_C)
        # A head with adapters computes whole rows: then the other must as well.
        whole = not (_plain(head_p) and _plain(head_q))
        blocks_p = _blocks(head_p, hidden_p, words, whole)
        blocks_q = _blocks(head_q, hidden_q, words, whole)
        for (_, x_CW), (_, y_CW) in zip(blocks_p, blocks_q, strict=True):
            x_CW, y_CW = to_p(x_CW), to_q(y_CW)
            p.add(x_CW.clone(), temperature, weights_CW=(x_CW - y_CW).div_(temperature))
            q.add(y_CW, temperature)
            del x_CW, y_CW
        parts.append(p.mean() - p.value() + q.value())
    joined = _joined(parts)
    return np.empty(0, np.float32) if joined is None else joined


class _LogSumExp:
    """log sum_w exp(x_w / temperature) of rows that arrive in blocks, (C,)."""

    def __init__(self, zero_C: Tensor) -> None:
        self._most_C = torch.full_like(zero_C, -torch.inf)
        self._sum_C = zero_C.clone()
        self._weighted_C = zero_C.clone()

    def add(self, logits_CW: Tensor, temperature: float, weights_CW: Tensor | None = None) -> None:
        """Add a block, whose memory is overwritten. `mean` averages `weights_CW`."""
        most_C = torch.maximum(self._most_C, logits_CW.amax(1))
        shrink_C = torch.exp((self._most_C - most_C) / temperature)
        exp_CW = logits_CW.sub_(most_C[:, None]).mul_(1 / temperature).exp_()
        self._sum_C = self._sum_C * shrink_C + exp_CW.sum(1)
        if weights_CW is not None:
            self._weighted_C = self._weighted_C * shrink_C + exp_CW.mul_(weights_CW).sum(1)
        self._most_C, self._temperature = most_C, temperature

    def value(self) -> Tensor:
        return self._most_C / self._temperature + self._sum_C.log()

    def mean(self) -> Tensor:
        """Mean of the weights under the softmax."""
        return self._weighted_C / self._sum_C


def _plain(head: nn.Linear) -> bool:
    return type(head) is nn.Linear


def _rows(head: nn.Linear, device: str) -> int:
    """Positions of a chunk."""
    words = BLOCK_WORDS[device] if _plain(head) else head.out_features
    return max(1, BLOCK_LOGITS[device] // min(words, head.out_features))


def _blocks(
    head: nn.Linear, hidden_CD: Tensor, words: int | None = None, whole: bool = False
) -> Iterator[tuple[int, Tensor]]:
    """Yield the first word and float32 logits (C, W) of each block of the first `words` words (by
    default all), before the model's transform; all in one block if `whole`."""
    words = words or head.out_features
    if whole or not _plain(head):
        yield 0, head(hidden_CD)[:, :words].float()
        return
    device = hidden_CD.device
    width = min(BLOCK_WORDS[device.type], BLOCK_LOGITS[device.type])
    for start in range(0, words, width):
        # The head may belong to a model that was moved off the device.
        rows = slice(start, min(start + width, words))
        weight = head.weight[rows].to(device)
        bias = None if head.bias is None else head.bias[rows].to(device)
        yield start, linear(hidden_CD, weight, bias).float()


def _target_logits(head: nn.Linear, hidden_CD: Tensor, targets_C: Tensor) -> Tensor:
    """The logits of the targets, (C,), up to rounding."""
    if not _plain(head):
        return head(hidden_CD).float().gather(1, targets_C[:, None])[:, 0]
    logits_C = (hidden_CD * head.weight[targets_C]).float().sum(1)
    return logits_C if head.bias is None else logits_C + head.bias[targets_C].float()


def _joined(parts: list[Tensor]) -> NDArray | None:
    return torch.cat(parts).cpu().numpy() if parts else None
