"""Batched sampling with transformers: the default engine, for small models and CPUs.

Shapes: Q prompts of a batch, R running completions, P padded prompt length, V vocabulary, N steps.
"""

import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rlt_core.config import Sampling
from rlt_core.generation.engine import ClosesItself, Completion, check_requests
from rlt_core.progress import Progress
from rlt_core.scoring import eval_mode

COMPACT_BELOW = 0.75
"""Finished completions are dropped from the batch once fewer than this share still run."""
CHECK_STEPS = 32
"""Steps between checks for a stop request."""
CACHE_GROWTH = 16
"""Positions that a full cache grows by: few, since gaps between rows slow attention."""


class TransformersEngine(ClosesItself):
    """Samples from a causal language model in this process.

    The model may be a policy in training, with or without adapters; it samples in eval mode.
    A batch holds at most `tokens_per_batch` tokens of prompts and completions, all at full length.
    """

    def __init__(self, model: PreTrainedModel, tokens_per_batch: int) -> None:
        self.model = model
        self.tokens_per_batch = tokens_per_batch

    @property
    def context(self) -> int:
        """The model's positions."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    def close(self) -> None:
        del self.model

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        stop_ids: Iterable[int],
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        check_requests(prompts, seeds, self.context)
        progress = progress or Progress()
        stop = torch.tensor(sorted(stop_ids), dtype=torch.long, device=self.model.device)
        requests = [(i, seed) for i, each in enumerate(seeds) for seed in each]
        found: dict[int, Completion] = {}
        tokens, start = 0, time.perf_counter()
        with torch.no_grad(), eval_mode(self.model):
            for places in self._batches(
                [len(prompts[i]) for i, _ in requests], sampling.max_tokens
            ):
                batch = [requests[place] for place in places]
                completions = self._batch(prompts, batch, sampling, stop, progress)
                found |= zip(places, completions, strict=True)
                tokens += sum(len(completion.ids) for completion in completions)
                rate = tokens / (time.perf_counter() - start)
                progress.report(len(found), len(requests), {"tokens_per_s": rate})
        in_order = (found[place] for place in range(len(requests)))
        return [[next(in_order) for _ in each] for each in seeds]

    def _batches(self, lengths: Sequence[int], max_new: int) -> Iterator[list[int]]:
        """Places of requests of similar prompt length, longest first, samples of a prompt side by
        side."""
        order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
        while order:
            size = self.tokens_per_batch // min(lengths[order[0]] + max_new, self.context)
            yield order[: max(1, size)]
            order = order[max(1, size) :]

    def _batch(
        self,
        prompts: Sequence[Sequence[int]],
        batch: list[tuple[int, int]],
        sampling: Sampling,
        stop: Tensor,
        progress: Progress,
    ) -> list[Completion]:
        """Prefill each prompt once, then decode all requests (number of a prompt, seed) step by
        step."""
        device = self.model.device
        room = [min(sampling.max_tokens, self.context - len(prompts[i])) for i, _ in batch]
        steps = max(room)
        places = {i: place for place, i in enumerate(dict.fromkeys(i for i, _ in batch))}
        prompt_R = torch.tensor([places[i] for i, _ in batch], device=device)
        uniforms_RN = torch.from_numpy(uniforms([seed for _, seed in batch], steps)).to(device)
        tokens_RN = torch.zeros(len(batch), steps, dtype=torch.long, device=device)
        logprobs_RN = torch.zeros(len(batch), steps, device=device)
        lengths_R = torch.tensor(room, device=device)
        stopped_R = torch.zeros(len(batch), dtype=torch.bool, device=device)
        ended_R = torch.zeros(len(batch), dtype=torch.bool, device=device)
        decoding = _Decoding(self.model, [prompts[i] for i in places], steps)
        logits_RV = decoding.prefill(prompt_R)
        row_R = torch.arange(len(batch), device=device)  # of each sequence still in the batch
        for step in range(steps):
            if step % CHECK_STEPS == 0:
                progress.check()
            token_R, logprob_R = sample_tokens(
                logits_RV, uniforms_RN[row_R, step], sampling.temperature, sampling.top_p
            )
            tokens_RN[row_R, step], logprobs_RN[row_R, step] = token_R, logprob_R
            stops_R = torch.isin(token_R, stop) & ~ended_R[row_R]
            ends_R = stops_R | (lengths_R[row_R] == step + 1)
            if ends_R.any():
                lengths_R[row_R[stops_R]] = step + 1
                stopped_R[row_R[stops_R]] = True
                ended_R[row_R[ends_R]] = True
                running_R = ~ended_R[row_R]
                count = int(running_R.sum())
                if not count:
                    break
                if count < COMPACT_BELOW * len(row_R):
                    decoding.keep(running_R)
                    row_R, token_R = row_R[running_R], token_R[running_R]
            if step + 1 < steps:
                logits_RV = decoding.step(token_R)
        return _completions(tokens_RN, logprobs_RN, lengths_R, stopped_R)


class _Decoding:
    """The state of a batch: its cache, and which cached positions are padding."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new: int
    ) -> None:
        self.model = model
        self.length = max(len(prompt) for prompt in prompts)
        padding = [self.length - len(prompt) for prompt in prompts]
        self.ids_QP = torch.tensor(
            [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
        ).to(model.device)
        self.padding_R = torch.tensor(padding, device=model.device)
        # Without padding there is no mask: attention then keeps its fast path.
        self.mask: Tensor | None = None
        if any(padding):
            positions = torch.arange(self.length + max_new, device=model.device)
            self.mask = (positions >= self.padding_R[:, None]).long()
        self.cache = DynamicCache(config=model.config)
        self.cache.layers = [
            GrowingLayer() if type(layer) is DynamicLayer else layer for layer in self.cache.layers
        ]

    def prefill(self, prompt_R: Tensor) -> Tensor:
        """Return the logits (R, V) of the first token; each prompt's cache is repeated."""
        positions = torch.arange(self.length, device=self.ids_QP.device)
        logits_QV = self._forward(self.ids_QP, (positions - self.padding_R[:, None]).clamp(min=0))
        self.keep(prompt_R)
        return logits_QV[prompt_R]

    def step(self, token_R: Tensor) -> Tensor:
        """Return the logits (R, V) of the token after these."""
        self.length += 1
        return self._forward(token_R[:, None], self.length - 1 - self.padding_R[:, None])

    def keep(self, which_R: Tensor) -> None:
        """Select rows, by mask or by number."""
        self.cache.batch_select_indices(which_R)
        self.padding_R = self.padding_R[which_R]
        if self.mask is not None:
            self.mask = self.mask[which_R]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        padded = {} if self.mask is None else {
            "attention_mask": self.mask[:, : self.length], "position_ids": positions
        }  # fmt: skip
        output = self.model(
            input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1, **padded
        )
        return output.logits[:, -1]


class GrowingLayer(DynamicLayer):
    """Writes keys and values in place, without a copy of the whole cache at every step."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append states (rows, heads, new positions, width); return all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._keys, self._values = key_states[:, :, :0], value_states[:, :, :0]
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if end > self._keys.shape[2]:
            capacity = end + CACHE_GROWTH
            self._keys = _grown(self._keys, key_states, start, capacity)
            self._values = _grown(self._values, value_states, start, capacity)
        self._keys[:, :, start:end] = key_states
        self._values[:, :, start:end] = value_states
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        length = self.get_seq_length()
        self.keys = self._keys = self._keys[:, :, :length][indices]
        self.values = self._values = self._values[:, :, :length][indices]


def _grown(buffer: Tensor, like: Tensor, filled: int, capacity: int) -> Tensor:
    rows, heads, _, width = like.shape
    grown = like.new_empty(rows, heads, capacity, width)
    grown[:, :, :filled] = buffer[:, :, :filled]
    return grown


# ---------------------------------------------------------------- sampling
def uniforms(seeds: Sequence[int], steps: int) -> NDArray[np.float64]:
    """Return random numbers 0 < u < 1 of 32 bits, (sequences, steps); each row from its own seed.

    Never 0, so that the first cumulative probability that reaches u belongs to a possible token.
    """
    rows = [
        np.random.Generator(np.random.Philox(key=seed)).integers(1 << 32, size=steps)
        for seed in seeds
    ]
    return (np.stack(rows) + 0.5) / (1 << 32)


def sample_tokens(
    logits_RV: Tensor, uniforms_R: Tensor, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """Sample tokens (R,) by inverting each row's cumulative distribution, with log-probs (R,).

    Temperature 0 takes the likeliest token. Top-p keeps the likeliest tokens whose probabilities
    sum to at least `top_p`. Raises RuntimeError if a row's logits are not finite.
    """
    logprobs_RV = torch.log_softmax(logits_RV.float() / (temperature or 1.0), dim=-1)
    if logprobs_RV.isnan().any():
        raise RuntimeError("the model's logits are not finite: its weights or its input are broken")
    if temperature == 0:
        tokens_R = logprobs_RV.argmax(dim=-1)
    else:
        if top_p < 1:
            logprobs_RV = _nucleus(logprobs_RV, top_p)
        cumulative_RV = logprobs_RV.exp().cumsum(dim=-1, dtype=torch.float64)
        heights_R = uniforms_R * cumulative_RV[:, -1]
        tokens_R = torch.searchsorted(cumulative_RV, heights_R[:, None])[:, 0]
    return tokens_R, logprobs_RV.gather(1, tokens_R[:, None])[:, 0]


def _nucleus(logprobs_RV: Tensor, top_p: float) -> Tensor:
    """Log-probs renormalised within the nucleus, -inf outside it."""
    sorted_RV, order_RV = logprobs_RV.sort(dim=-1, descending=True, stable=True)
    probs_RV = sorted_RV.exp()
    outside_RV = probs_RV.cumsum(dim=-1, dtype=torch.float64) - probs_RV >= top_p
    outside_RV[:, 0] = False
    outside_RV = outside_RV.scatter(1, order_RV, outside_RV)
    return torch.log_softmax(logprobs_RV.masked_fill(outside_RV, -torch.inf), dim=-1)


def _completions(
    tokens_RN: Tensor, logprobs_RN: Tensor, lengths_R: Tensor, stopped_R: Tensor
) -> list[Completion]:
    tokens, logprobs = tokens_RN.cpu(), logprobs_RN.cpu().numpy()
    return [
        Completion(
            ids=tokens[row, :length].tolist(),
            finish_reason="stop" if stopped else "length",
            logprobs=logprobs[row, :length].copy(),
        )
        for row, (length, stopped) in enumerate(
            zip(lengths_R.tolist(), stopped_R.tolist(), strict=True)
        )
    ]
