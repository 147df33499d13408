"""`rlt reward replay` on many traces.

    python -m infra.benchmarks.replay [TRACES [THINK_TOKENS]]

A store with one `scores` artifact is written on a temporary disk (`TMPDIR`; 2.1 GB for 1,000,000
traces): files of `SHARD` traces as trace-scoring leaves them, random log-probs of `THINK_TOKENS`
and `SOLUTION_TOKENS` tokens. Each replay is a process of its own, the command as a user types it;
its seconds, those of its CPUs and the greatest memory that it held are printed. The plain way is a
loop over `reward_parts` on the rows that `read_rows` gives, on the first file. Their rewards are
compared.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlt_core.config import RewardSpec
from rlt_core.reward import reward_parts
from rlt_core.rows import read_rows, write_table
from rlt_core.schemas import SCORES
from rlt_core.store import Manifest, Ref, Store

TRACES = 100_000
SHARD = 1024
"""Traces a file: 64 questions with 16 completions each."""
THINK_TOKENS, SOLUTION_TOKENS = 300, 20
"""Of each trace."""
WAYS = {
    "alpha, lambda": (["--alpha", "0.1", "--lambda", "1"], RewardSpec(alpha=0.1, kl_weight=1)),
    "k3": (["--kl", "k3"], RewardSpec(kl="k3")),
    "median": (
        ["--reduction", "median"],
        RewardSpec(solution_reduction="median", think_reduction="median"),
    ),
}


def _lists(draw: np.random.Generator, tokens: int) -> pa.Array:
    """Log-probs as models give them: most tokens nearly certain, some not at all."""
    values = -draw.standard_exponential(SHARD * tokens, dtype=np.float32)
    values *= np.where(draw.random(SHARD * tokens, dtype=np.float32) < 0.6, 0.01, 2)
    return pa.ListArray.from_arrays(np.arange(SHARD + 1, dtype=np.int32) * tokens, values)


def _shard(number: int, think_tokens: int) -> pa.Table:
    """`scores` of 64 questions."""
    draw = np.random.default_rng(number)
    questions = [f"{number * 64 + row // 16:016x}" for row in range(SHARD)]
    columns = {
        "trace_id": pa.array([f"{each}-{row % 16}" for row, each in enumerate(questions)]),
        "question_id": pa.array(questions),
        "seed": pa.array([0] * SHARD, pa.int32()),
        "teacher": pa.array(["a" * 16] * SHARD),
        "student": pa.array(["b" * 16] * SHARD),
        "sample": pa.array(np.arange(SHARD, dtype=np.int32) % 16),
        "status": pa.array(["scored"] * SHARD),
        "reward": pa.array(draw.normal(size=SHARD)),
        "rank": pa.array(np.arange(SHARD, dtype=np.int32) % 16 + 1),
        "closed": pa.array(draw.random(SHARD) < 0.9),
        "student_solution_logprobs": _lists(draw, SOLUTION_TOKENS),
        "student_think_logprobs": _lists(draw, think_tokens),
        "teacher_think_logprobs": _lists(draw, think_tokens),
    }
    return pa.table(
        [columns.get(field.name, pa.nulls(SHARD, field.type)) for field in SCORES], schema=SCORES
    )


def fill(store: Store, traces: int, think_tokens: int) -> Manifest:
    """Commit them, rounded up to whole files."""
    attempt = store.begin(Ref(kind="scores", key="0" * 16))
    for number in range(-(-traces // SHARD)):
        write_table(attempt.out / "scores" / f"{number:06}.parquet", _shard(number, think_tokens))
    now = datetime.now(UTC)
    return store.commit(
        Manifest(
            ref=attempt.ref, attempt=attempt.id, stage="trace-scoring", stage_version=1,
            label="trace-scoring[many]", profile="benchmark", seed=0,
            config={"reward": RewardSpec().model_dump()}, inputs={},
            files=store.describe(attempt), metrics={}, packages={}, git_commit=None,
            flow_run_id=None, started_at=now, finished_at=now, seconds=0, gpu_seconds=0,
            device="cpu", threads=1,
        )
    )  # fmt: skip


def command(store: Store, options: list[str], output: Path) -> tuple[float, float, float]:
    """Seconds, CPU-seconds and peak GiB of one `rlt reward replay`."""
    line = [sys.executable, "-m", "flows.cli", "reward", "replay", *options, "--json"]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*line, "--store", str(store), "--output", str(output)], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(line)} failed")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def plain(folder: Path, spec: RewardSpec) -> tuple[float, dict[str, float]]:
    """Seconds a trace of the loop, and the rewards of the first file."""
    sample = folder / "sample"
    sample.mkdir(exist_ok=True)
    (sample / "scores.parquet").write_bytes((folder / "scores/000000.parquet").read_bytes())
    started = time.perf_counter()
    rewards = {
        row["trace_id"]: reward_parts(
            row["student_solution_logprobs"], row["student_think_logprobs"],
            row["teacher_think_logprobs"], row["closed"], spec,
        ).reward
        for row in read_rows(sample, "scores")
    }  # fmt: skip
    return (time.perf_counter() - started) / len(rewards), rewards


def main() -> None:
    """All ways on one store."""
    traces = int(sys.argv[1]) if len(sys.argv) > 1 else TRACES
    think_tokens = int(sys.argv[2]) if len(sys.argv) > 2 else THINK_TOKENS
    with tempfile.TemporaryDirectory() as folder:
        store, output = Store(f"{folder}/store"), Path(folder) / "replayed.parquet"
        started = time.perf_counter()
        manifest = fill(store, traces, think_tokens)
        print(
            f"{manifest.rows:,} traces of {think_tokens} think and {SOLUTION_TOKENS} solution "
            f"tokens, {manifest.bytes / 1e6:,.0f} MB (written in "
            f"{time.perf_counter() - started:.0f} s)"
        )
        print(
            f"{'':<16}{'seconds':>9}{'CPU-s':>8}{'GiB':>7}"
            f"{'us a trace':>12}{'plain loop':>12}{'ratio':>8}"
        )
        for way, (options, spec) in WAYS.items():
            seconds, cpu, memory = command(store, options, output)
            each = seconds / manifest.rows
            loop, rewards = plain(store.local(manifest), spec)
            found = pq.read_table(output, columns=["trace_id", "reward"]).to_pydict()
            replayed = dict(zip(found["trace_id"], found["reward"], strict=True))
            for key, value in rewards.items():
                assert math.isclose(replayed[key], value, rel_tol=1e-9, abs_tol=1e-6), key
            print(
                f"{way:<16}{seconds:9.1f}{cpu:8.1f}{memory:7.2f}"
                f"{each * 1e6:12.1f}{loop * 1e6:12.1f}{loop / each:8.1f}"
            )


if __name__ == "__main__":
    main()
