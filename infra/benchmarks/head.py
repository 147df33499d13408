"""The output embedding alone, at Qwen2.5-7B's shape: `python -m infra.benchmarks.reward.head`.

From hidden states to log-probs of one target a position. Plain: all logits, float32, divided by the
temperature, log-softmaxed, gathered; at the greatest length that MEMORY_SHARE of the free memory
holds, up to `--plain-tokens`. Ours: blocks of logits (`rlt_core.scoring.head`), at `--tokens`. Both
on the same random weights, float32 on a CPU, bf16 on a GPU (no GPU was at hand: not run there).
Memory: what a way's peak adds to what lay there before, inputs excluded. On a CPU that is the
process's resident set (VmHWM of /proc/self/status, taken back before; Linux), whose peak includes
what the matrix library keeps. Log-probs of the positions that both scored are compared.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from infra.benchmarks.reward.cases import device_and_dtype
from infra.benchmarks.reward.work import peak, timed
from rlt_core.scoring.head import head_logprobs

WIDTH, VOCABULARY = 3584, 152_064
TEMPERATURE = 0.7
TOKENS = 16_384
MEMORY_SHARE = 0.75
PLAIN_BYTES = 2 * 4 * VOCABULARY
"""A token, of the plain way: two float32 rows of logits lie side by side."""
TOLERANCE = 1e-3
LOGPROBS = NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """One way at one length."""

    name: str
    tokens: int
    seconds: float
    bytes: int
    """Peak, beside inputs."""
    logprobs: LOGPROBS


def plain(head: nn.Linear, hidden_ND: Tensor, targets_N: Tensor) -> LOGPROBS:
    """Everything at once."""
    with torch.no_grad():
        logits_NV = head(hidden_ND).float()
        logits_NV = logits_NV / TEMPERATURE
        logprobs_NV = torch.log_softmax(logits_NV, dim=-1)
        return logprobs_NV.gather(1, targets_N[:, None])[:, 0].cpu().numpy()


def ours(head: nn.Linear, hidden_ND: Tensor, targets_N: Tensor) -> LOGPROBS:
    """A block at a time."""
    with torch.no_grad():
        return head_logprobs(head, hidden_ND, targets_N, TEMPERATURE).logprobs


def plain_length(longest: int, device: str) -> int:
    """Tokens that the plain way can take, up to `longest`."""
    if device == "cuda":
        free = torch.cuda.mem_get_info()[0]
    else:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if "MemAvailable" in line)
    return min(longest, int(MEMORY_SHARE * free / PLAIN_BYTES))


def measure(
    name: str,
    way: Callable[[nn.Linear, Tensor, Tensor], LOGPROBS],
    inputs: tuple[nn.Linear, Tensor, Tensor],
    tokens: int,
) -> Measured:
    """One run, after a short one that wakes the library."""
    head, hidden_ND, targets_N = inputs
    way(head, hidden_ND[:16], targets_N[:16])
    before = _reset_peak(hidden_ND.device.type)
    seconds, logprobs = timed(lambda: way(head, hidden_ND[:tokens], targets_N[:tokens]))
    return Measured(name, tokens, seconds, _peak(hidden_ND.device.type) - before, logprobs)


def _reset_peak(device: str) -> int:
    """Bytes in use now; the peak starts from here."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # What earlier work left in the C library's pools would else be taken for free memory.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def report(rows: Sequence[Measured], best_product: float) -> bool:
    """Print the table; whether log-probs agree."""
    print(f"best matrix product: {best_product / 1e9:,.0f} GFLOP/s")
    print(
        f"{'':<12}{'tokens':>8}{'seconds':>9}{'ms/token':>10}{'peak MiB':>10}{'KiB/token':>11}"
        f"{'share of peak':>15}"
    )
    for row in rows:
        share = 2 * WIDTH * VOCABULARY * row.tokens / row.seconds / best_product
        print(
            f"{row.name:<12}{row.tokens:>8,}{row.seconds:9.2f}"
            f"{1e3 * row.seconds / row.tokens:10.3f}{row.bytes / 2**20:10,.0f}"
            f"{row.bytes / row.tokens / 2**10:11,.1f}{share:15.1%}"
        )
    first, second = rows
    both = min(first.tokens, second.tokens)
    gap = float(np.abs(first.logprobs[:both] - second.logprobs[:both]).max())
    a, b = ((row.bytes / row.tokens, row.seconds / row.tokens) for row in rows)
    print(
        f"plain / ours, a token: memory {a[0] / b[0]:,.0f}, time {a[1] / b[1]:.2f}; "
        f"largest difference of log-probs: {gap:.1e}"
    )
    return gap < TOLERANCE


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of ours")
    parser.add_argument("--plain-tokens", type=int, default=TOKENS, help="at most")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device, dtype = device_and_dtype()
    draw = torch.Generator(device).manual_seed(0)
    with torch.device(device):
        head = nn.utils.skip_init(nn.Linear, WIDTH, VOCABULARY, bias=False, device=device)
        head.to(getattr(torch, dtype)).requires_grad_(False)
        # Logits with a deviation of 3, so that soft-maxes have peaks.
        head.weight.normal_(std=3 * WIDTH**-0.5, generator=draw)
        longest = max(options.tokens, options.plain_tokens)
        hidden_ND = torch.randn(longest, WIDTH, dtype=head.weight.dtype, generator=draw)
        targets_N = torch.randint(VOCABULARY, (longest,), generator=draw)
    inputs = (head, hidden_ND, targets_N)
    print(f"{WIDTH} x {VOCABULARY:,}, {dtype}, {device}, {options.threads} threads")
    best_product = peak(device, dtype)
    rows = [measure("ours", ours, inputs, options.tokens)]
    rows.insert(0, measure("plain", plain, inputs, plain_length(options.plain_tokens, device)))
    return not report(rows, max(best_product, peak(device, dtype)))


if __name__ == "__main__":
    sys.exit(main())
