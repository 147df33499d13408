"""Rollouts one step ahead: the completions of step n + 1 are drawn while step n trains.

They come from the policy before step n's update. The loss then has their log-probs at sampling as
the old ones, so that TRL's clipped ratio (arXiv 2402.03300, eq. 3) corrects for the update between.
TRL's AsyncGRPOTrainer does not do: it has no reference model, so no KL penalty, and its rewards are
computed in a process that does not have the policy, whose log-probs the RLT reward reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from rlt_core.config import Sampling
from rlt_core.generation import Completion
from rlt_core.generation.engine import ClosesItself
from rlt_core.training.rollout import LiveEngine

FILE = "rollouts.safetensors"


@dataclass(frozen=True)
class Requests:
    """What one process draws for a step: whole groups or the ends of groups, in their order."""

    prompts: list[list[int]]
    seeds: list[list[int]]


class Ahead(ClosesItself):
    """Draws for the next step in a thread of its own."""

    def __init__(self, engine: LiveEngine, sampling: Sampling, stop_ids: Sequence[int]) -> None:
        self._engine, self._sampling, self._stop_ids = engine, sampling, stop_ids
        self._thread = ThreadPoolExecutor(1, "rollouts")
        self._drawing: Future[list[Completion]] | None = None

    def start(self, requests: Requests) -> None:
        """Begin to draw from the policy as it is now; all processes together."""
        self._engine.renew()
        self._drawing = self._thread.submit(self._draw, requests)

    def now(self, requests: Requests) -> list[Completion]:
        """What was drawn ahead; drawn now if nothing was, as at the first step."""
        if self._drawing is None:
            self._engine.renew()
            return self._draw(requests)
        drawn, self._drawing = self._drawing.result(), None
        return drawn

    def pending(self) -> list[Completion]:
        """What the next step will get; waits for it. Empty if nothing was begun."""
        return self._drawing.result() if self._drawing else []

    def take_up(self, completions: list[Completion]) -> None:
        """Give these to the next step."""
        self._drawing = Future()
        self._drawing.set_result(completions)

    def close(self) -> None:
        """Wait for what is being drawn."""
        self._thread.shutdown()

    def _draw(self, requests: Requests) -> list[Completion]:
        drawn = self._engine.draw(requests.prompts, self._sampling, requests.seeds, self._stop_ids)
        return [completion for group in drawn for completion in group]


def write(completions: Sequence[Completion], folder: Path) -> None:
    """Keep completions with their log-probs in a checkpoint."""
    nothing = np.empty(0, np.float32)
    save_file(
        {
            "ids": np.array([i for each in completions for i in each.ids], np.int64),
            "lengths": np.array([len(each.ids) for each in completions], np.int64),
            "stopped": np.array([each.finish_reason == "stop" for each in completions]),
            "logprobs": np.concatenate([nothing, *(_logprobs(each) for each in completions)]),
        },
        folder / FILE,
    )


def read(folder: Path) -> list[Completion]:
    """What `write` kept; nothing if it kept nothing."""
    if not (folder / FILE).exists():
        return []
    kept = load_file(folder / FILE)
    edges = kept["lengths"].cumsum()[:-1]
    return [
        Completion(ids.tolist(), "stop" if stopped else "length", logprobs)
        for ids, stopped, logprobs in zip(
            np.split(kept["ids"], edges),
            kept["stopped"],
            np.split(kept["logprobs"], edges),
            strict=True,
        )
    ]


def _logprobs(completion: Completion) -> np.ndarray:
    assert completion.logprobs is not None
    return completion.logprobs
