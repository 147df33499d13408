"""Compare `rlt sql` with DuckDB's `read_parquet`, and `rlt reward replay` with a Python loop.

    python -m infra.benchmarks.sql [--artifacts N] [--rows ROWS] [--think-tokens T]

`rlt sql` registers pyarrow datasets with pyarrow's own file systems. DuckDB's own S3 client is an
extension that must be downloaded, so `read_parquet` reads S3 through a registered fsspec file
system, and plain paths on a local disk. Both read N artifacts of `scores`, log-prob lists included,
on a local disk and on a real S3 server on loopback, and must return the same rows. The first time
is what `rlt sql "…"` pays; the best of REPEATS on one connection is what a shell pays.

A replay is the command as a user types it, over all artifacts on the disk, with its peak memory.
The loop calls `reward_parts` on the rows of one artifact; both must give the same rewards.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs

from infra.s3_server import serve
from infra.sample_manifest import sample_manifest
from rlt_core.config import RewardSpec
from rlt_core.reward.formula import reward_parts
from rlt_core.rows import read_rows
from rlt_core.sql.schemas import SCORES
from rlt_core.sql.views import connect
from rlt_core.store import Manifest, Ref, Store

REPEATS = 3
SOLUTION_TOKENS = 3
BUCKET = "benchmark"
QUERIES = {
    "mean by rank": (
        "select rank, count(*), round(avg(reward), 9) from scores group by rank order by rank"
    ),
    "log-prob lists": (
        "select count(*), round(sum(list_sum(teacher_think_logprobs) - "
        "list_sum(student_think_logprobs)), 3) from scores"
    ),
    "one run": "select count(*), round(avg(reward), 9) from scores where run = ?",
}


# ---------------------------------------------------------------- a store
def scores_table(rows: int, think_tokens: int) -> pa.Table:
    """Return `scores` of one artifact: random rewards and log-probs, which hardly compress."""
    rng = np.random.default_rng(0)

    def lists(tokens: int) -> pa.Array:
        values = -rng.standard_exponential(rows * tokens, dtype=np.float32)
        return pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * tokens, values)

    questions = [f"{row // 16:016x}" for row in range(rows)]
    samples = np.arange(rows, dtype=np.int32) % 16
    columns = {
        "question_id": pa.array(questions),
        "trace_id": pa.array([f"{each}-{row % 16}" for row, each in enumerate(questions)]),
        "seed": pa.array([0] * rows, pa.int32()),
        "teacher": pa.array(["a" * 16] * rows),
        "student": pa.array(["b" * 16] * rows),
        "sample": pa.array(samples),
        "status": pa.array(["scored"] * rows),
        "reward": pa.array(rng.normal(size=rows)),
        "rank": pa.array(samples + 1),
        "closed": pa.array(rng.random(rows) < 0.9),
        "student_solution_logprobs": lists(SOLUTION_TOKENS),
        "student_think_logprobs": lists(think_tokens),
        "teacher_think_logprobs": lists(think_tokens),
    }
    nulls = {field.name: pa.nulls(rows, field.type) for field in SCORES}
    return pa.table({**nulls, **columns}, schema=SCORES)


def fill(store: Store, source: Path, artifacts: int) -> list[Manifest]:
    """Commit artifacts with the table's file."""
    committed = []
    for number in range(artifacts):
        attempt = store.begin(Ref(kind="scores", key=f"{number:016x}"))
        (attempt.out / "scores.parquet").write_bytes(source.read_bytes())
        manifest = sample_manifest(
            attempt.ref, attempt.id, store.describe(attempt), stage="trace-scoring",
            label=f"trace-scoring[{number}]", config={"reward": RewardSpec().model_dump()},
        )  # fmt: skip
        committed.append(store.commit(manifest))
    return committed


# ---------------------------------------------------------------- SQL
def read_parquet(files: list[str]) -> duckdb.DuckDBPyConnection:
    """Return a connection whose view `scores` uses DuckDB's own Parquet reader; `run` is the path
    of a row's file."""
    connection = duckdb.connect()
    if files[0].startswith("s3://"):
        # The fastest of fsspec's caches here; its default reads ahead.
        fs = s3fs.S3FileSystem(default_cache_type="bytes", skip_instance_cache=True)
        connection.register_filesystem(fs)
    connection.execute(
        f"create view scores as select * from read_parquet({files}, filename = 'run')"
    )
    return connection


def timed(
    connection: duckdb.DuckDBPyConnection, sql: str, run: str
) -> tuple[float, float, list[tuple[object, ...]]]:
    """Return the seconds of the first time, the least seconds of all times, and the rows."""
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        rows = connection.execute(sql, [run] if "?" in sql else []).fetchall()
        seconds.append(time.perf_counter() - started)
    return seconds[0], min(seconds), rows


def compare_sql(name: str, store: Store, manifests: list[Manifest]) -> None:
    """Print the seconds of both ways on one store."""
    scheme = "" if store.files.is_local else "s3://"
    files = [f"{scheme}{store.data_path(each)}/scores.parquet" for each in manifests]
    print(f"{name:<16}{'datasets':>18}{'read_parquet':>18}{'ratio':>14}   (first, best)")
    for query, sql in QUERIES.items():
        with connect(store) as ours, read_parquet(files) as theirs:
            first, best, rows = timed(ours, sql, manifests[-1].ref.key)
            their_first, their_best, their_rows = timed(theirs, sql, files[-1])
        assert rows == their_rows, f"{rows} and {their_rows}"
        print(
            f"{query:<16}{first:9.3f}{best:9.3f}{their_first:9.3f}{their_best:9.3f}"
            f"{their_first / first:7.1f}{their_best / best:7.1f}"
        )


# ---------------------------------------------------------------- replay
def compare_replay(store: Store, manifests: list[Manifest], folder: Path) -> None:
    """Print the seconds of the command and of the loop per trace."""
    output = folder / "replayed.parquet"
    line = [sys.executable, "-m", "flows.cli.app", "reward", "replay", "--alpha", "0.1", "--lambda",
            "1", "--json", "--store", str(store), "--output", str(output)]  # fmt: skip
    started = time.perf_counter()
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    traces = sum(each.rows for each in manifests)
    ours = (time.perf_counter() - started) / traces
    if status:
        raise SystemExit(f"{' '.join(line)} failed")

    spec = RewardSpec(alpha=0.1, kl_weight=1)
    started = time.perf_counter()
    rewards = {
        row["trace_id"]: reward_parts(
            row["student_solution_logprobs"], row["student_think_logprobs"],
            row["teacher_think_logprobs"], row["closed"], spec,
        ).reward
        for row in read_rows(store.intact(manifests[0]), "scores")
    }  # fmt: skip
    loop = (time.perf_counter() - started) / len(rewards)
    replayed = pq.read_table(output, columns=["run", "trace_id", "reward"]).to_pylist()
    for row in replayed:
        assert math.isclose(row["reward"], rewards[row["trace_id"]], rel_tol=1e-9, abs_tol=1e-6)
    assert len(replayed) == traces
    print(
        f"replay of {traces:,} traces: {ours * traces:.1f} s, {usage.ru_maxrss / 2**20:.2f} GiB, "
        f"{ours * 1e6:.1f} us a trace; loop {loop * 1e6:.1f} us, ratio {loop / ours:.1f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifacts", type=int, default=100)
    parser.add_argument("--rows", type=int, default=20_000, help="rows per artifact")
    parser.add_argument("--think-tokens", type=int, default=12)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        source = folder / "scores.parquet"
        pq.write_table(scores_table(given.rows, given.think_tokens), source, compression="zstd")
        store = Store(f"{name}/store")
        manifests = fill(store, source, given.artifacts)
        size = sum(each.bytes for each in manifests) / 1e6
        print(f"{given.artifacts} artifacts of {given.rows:,} rows, {size:,.0f} MB")
        compare_sql("disk", store, manifests)
        compare_replay(store, manifests, folder)
        with serve(folder / "s3", BUCKET) as access:
            os.environ.update(access.environment())
            store = Store(f"s3://{BUCKET}/store")
            compare_sql("S3", store, fill(store, source, given.artifacts))


if __name__ == "__main__":
    main()
