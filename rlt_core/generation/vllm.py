"""The GPU engine: vLLM, with a seed for every completion."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rlt_core.config import DType, Sampling, StageResources
from rlt_core.errors import UserError
from rlt_core.generation.engine import (
    ClosesItself,
    Completion,
    FinishReason,
    check_requests,
)
from rlt_core.progress import Progress

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.logprobs import Logprob

REQUESTS_AT_ONCE = 2048
"""Completions passed to vLLM between checks for a stop request."""
FITTING = -1
"""`max_model_len`: the model's, or as much as fits into memory."""
BARE: dict[str, Any] = {
    "generation_config": "vllm",  # the folder's own sampling defaults do not apply
    "skip_tokenizer_init": True,  # ids in, ids out
}


def require_vllm() -> None:
    """Raise UserError if vLLM cannot be imported."""
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"engine=vllm: vLLM cannot be imported ({error}): "
            "pip install rlt-pipeline[vllm], or set resources.engine=transformers"
        ) from None


class VLLMEngine(ClosesItself):
    """Samples with vLLM from a local model folder. vLLM schedules the batches itself.

    The context is the model's, or as much as fits into memory; a completion that fills it ends with
    `length`. Uses the share `resources.vllm_memory` of each of `resources.tensor_parallel` GPUs, or
    of a CPU's memory; there VLLM_CPU_KVCACHE_SPACE (GiB of cache) overrides it. Raises UserError if
    vLLM is not installed.
    """

    def __init__(self, model_folder: Path, dtype: DType, resources: StageResources) -> None:
        require_vllm()
        from vllm import LLM

        # A forked engine cannot use CUDA if this process has initialised it before.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        self._llm = LLM(
            model=str(model_folder),
            dtype=dtype,
            max_model_len=FITTING,
            logprobs_mode="processed_logprobs",  # after temperature and top-p
            tensor_parallel_size=resources.tensor_parallel,
            gpu_memory_utilization=resources.vllm_memory,
            **BARE,
        )

    @property
    def context(self) -> int:
        """The model's positions, or as many as fit into memory."""
        return int(self._llm.llm_engine.model_config.max_model_len)

    def close(self) -> None:
        """Stop vLLM's engine process and free the device's memory."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        stop_ids: Iterable[int],
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`. Samples of a prompt share its prefill through the prefix cache."""
        from vllm import TokensPrompt

        check_requests(prompts, seeds, self.context)
        progress = progress or Progress()
        stop = sorted(stop_ids)
        requests = [(list(prompts[i]), seed) for i, each in enumerate(seeds) for seed in each]
        completions: list[Completion] = []
        tokens, start = 0, time.perf_counter()
        for first in range(0, len(requests), REQUESTS_AT_ONCE):
            progress.check()
            part = requests[first : first + REQUESTS_AT_ONCE]
            outputs = self._llm.generate(
                [TokensPrompt(prompt_token_ids=prompt) for prompt, _ in part],
                [_params(sampling, seed, stop) for _, seed in part],
                use_tqdm=False,
            )
            completions += map(_completion, outputs)
            tokens += sum(len(completion.ids) for completion in completions[first:])
            rate = tokens / (time.perf_counter() - start)
            progress.report(len(completions), len(requests), {"tokens_per_s": rate})
        in_order = iter(completions)
        return [[next(in_order) for _ in each] for each in seeds]


def _params(sampling: Sampling, seed: int, stop: list[int]) -> SamplingParams:
    """Only our stop tokens end a completion, not those that vLLM reads from the folder."""
    from vllm import SamplingParams

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
        max_tokens=sampling.max_tokens,
        stop_token_ids=stop,
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
    )


def _completion(output: RequestOutput) -> Completion:
    """Raise RuntimeError for a request that ended for a reason other than its length or a stop."""
    [completion] = output.outputs
    ids = list(completion.token_ids)
    reasons: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}
    if completion.finish_reason not in reasons or completion.logprobs is None:
        raise RuntimeError(f"vLLM ended a request with {completion.finish_reason!r}")
    positions = cast("list[dict[int, Logprob]]", completion.logprobs)
    return Completion(
        ids=ids,
        finish_reason=reasons[completion.finish_reason],
        logprobs=np.array(
            [at[token].logprob for token, at in zip(ids, positions, strict=True)], np.float32
        ),
    )
