"""The interface of generation engines."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from rlt_core.config import Sampling
from rlt_core.progress import Progress

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Completion:
    """One completion of one prompt."""

    ids: list[int]
    """The sampled tokens, with the stop token if it was written."""
    finish_reason: FinishReason
    """`stop`: a stop token was written; `length`: the token limit was reached before one."""
    logprobs: NDArray[np.float32]
    """log p of each sampled token under the distribution it was sampled from (after temperature and
    top-p; greedy: the plain softmax). Natural logarithm."""


class Engine(Protocol):
    """Samples completions. A context manager that closes itself."""

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its completion together."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        stop_ids: Iterable[int],
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """Sample one completion for every seed of every prompt, in order.

        A completion depends on its prompt and its seed (0 <= seed < 2**63), not on the rest of the
        batch, up to rounding; `sampling.n` is ignored. One that fills the context ends with
        `length`. Progress counts completions. Raises ValueError for a prompt that is empty or fills
        the context, Stopped after a stop request.
        """

    def close(self) -> None:
        """Free the model's memory."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class ClosesItself(ABC):
    """Mix-in that makes a class with `close` a context manager."""

    @abstractmethod
    def close(self) -> None:
        """Free the object's resources."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sample_seed(key: str, question_id: str, sample: int) -> int:
    """Return the seed of one completion of a question in the node with this key; below 2**63."""
    digest = hashlib.sha256(f"{key}:{question_id}:{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check_requests(
    prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], context: int
) -> None:
    """Raise ValueError unless every prompt has tokens, fits the context and has a list of seeds."""
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts, seeds for {len(seeds)}")
    if empty := [i for i, prompt in enumerate(prompts) if not prompt]:
        raise ValueError(f"prompt {empty[0]} is empty")
    if full := [i for i, prompt in enumerate(prompts) if len(prompt) >= context]:
        raise ValueError(
            f"prompt {full[0]} has {len(prompts[full[0]])} tokens and leaves no room in a context "
            f"of {context}"
        )
