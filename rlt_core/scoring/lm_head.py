"""From hidden states to log-probs: the output embedding, computed a chunk of positions at a time.

Shapes: N positions, D width, C positions of a chunk, V words.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FLOATS = NDArray[np.float32]

BLOCK_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Logits of a chunk: on a CPU, as many as its caches hold."""
LEAST_ROWS = 64
"""Fewest positions of a chunk: each reads all of the head's weights."""


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

    def part(self, start: int, end: int) -> HeadScores:
        """Return the scores of the tokens from `start` to `end`."""
        known = {name: each for name, each in vars(self).items() if each is not None}
        return HeadScores(**{name: each[start:end] for name, each in known.items()})


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
    tokenizer's vocabulary too.
    """
    logprobs, surprisal, above = [], [], []
    rows = _rows(head, hidden_ND)
    for hidden_CD, targets_C in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True):
        logits_CV = transform(head(hidden_CD).float())
        target_C = logits_CV.gather(1, targets_C[:, None])[:, 0]
        if ranks:
            above.append((logits_CV > target_C[:, None]).sum(1, dtype=torch.int32).long() + 1)
            surprisal.append(_logsumexp(logits_CV.clone(), 1.0) - target_C)
        logprobs.append(target_C / temperature - _logsumexp(logits_CV, temperature))
        del logits_CV  # before the next chunk is made
    if not ranks:
        return HeadScores(_joined(logprobs))
    return HeadScores(_joined(logprobs), _joined(surprisal), _joined(above))


def head_kl(
    heads: tuple[nn.Linear, nn.Linear],
    hidden_ND: tuple[Tensor, Tensor],
    temperature: float,
    *,
    transforms: tuple[LogitTransform, LogitTransform] = (PLAIN, PLAIN),
    words: int | None = None,
) -> FLOATS:
    """Compute KL(p || q) over the vocabulary at each position, (N,), from both hidden states.

    sum_v p(v) (log p(v) - log q(v)) at the temperature, p the first model's. Both distributions
    cover the first `words` words, the tokenizer's, renormalised: rows that pad a head to a round
    number represent no word, and two models of one tokenizer may have different numbers of them.
    Without `words`: all that both heads have.
    """
    if heads[1].weight.device != hidden_ND[1].device:  # of a model that was moved off the device
        heads = heads[0], deepcopy(heads[1]).to(hidden_ND[1].device)
    words = min(*(head.out_features for head in heads), words or heads[0].out_features)
    rows = min(_rows(head, hidden_ND[0]) for head in heads)
    parts = []
    for hidden in zip(*(each.split(rows) for each in hidden_ND), strict=True):
        log_p_CV, log_q_CV = (
            (to(head(hidden_CD)[:, :words].float()) / temperature).log_softmax(1)
            for head, hidden_CD, to in zip(heads, hidden, transforms, strict=True)
        )
        parts.append(log_p_CV.exp().mul_(log_p_CV - log_q_CV).sum(1))
        del log_p_CV, log_q_CV  # before the next chunk is made
    return _joined(parts)


def _logsumexp(logits_CV: Tensor, temperature: float) -> Tensor:
    """Compute log sum_v exp(x_v / temperature) of each row, (C,); overwrites the logits."""
    most_C = logits_CV.amax(1)
    sum_C = logits_CV.sub_(most_C[:, None]).mul_(1 / temperature).exp_().sum(1)
    return most_C / temperature + sum_C.log()


def _rows(head: nn.Linear, hidden_ND: Tensor) -> int:
    """Positions of a chunk."""
    return max(LEAST_ROWS, BLOCK_LOGITS[hidden_ND.device.type] // head.out_features)


def _joined(parts: list[Tensor]) -> NDArray[Any]:
    return torch.cat(parts).cpu().numpy()
