"""Ways for DuckDB to read the tables of a store, timed: `python -m infra.benchmarks.sql_paths`.

`rlt sql` registers pyarrow datasets (pyarrow's own file systems). The other way is DuckDB's
`read_parquet`: on S3 through a registered fsspec file system, since DuckDB's own S3 client is an
extension that wants the network at its first use; on a local disk over plain paths. Both read
`ARTIFACTS` artifacts of `scores`, log-prob lists included, on a local disk and on a real S3 server
on loopback. The first time is what `rlt sql "…"` pays; the best of `REPEATS` on one connection is
what a shell pays, where both ways have cached the files' footers. Results are compared, so that
both ways did the same work.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs

from flows.local import s3
from rlt_core.schemas import SCORES
from rlt_core.store import Manifest, Ref, Store
from rlt_core.tables import connect

ARTIFACTS = 100
ROWS = 20_000
"""Rows an artifact."""
THINK_TOKENS = 12
SOLUTION_TOKENS = 3
REPEATS = 3
BUCKET = "benchmark"


# ---------------------------------------------------------------- a store
def scores_table() -> pa.Table:
    """`scores` of one artifact: random rewards and log-probs, which hardly compress."""
    draw = np.random.default_rng(0)

    def lists(tokens: int) -> pa.Array:
        values = pa.array(-draw.exponential(size=ROWS * tokens).astype(np.float32))
        offsets = pa.array(np.arange(ROWS + 1, dtype=np.int32) * tokens)
        return pa.ListArray.from_arrays(offsets, values)

    questions = [f"{row // 16:016x}" for row in range(ROWS)]
    columns = {
        "question_id": pa.array(questions),
        "trace_id": pa.array([f"{each}-{row % 16}" for row, each in enumerate(questions)]),
        "status": pa.array(["scored"] * ROWS),
        "reward": pa.array(draw.normal(size=ROWS)),
        "rank": pa.array(np.arange(ROWS, dtype=np.int32) % 16 + 1),
        "student_solution_logprobs": lists(SOLUTION_TOKENS),
        "student_think_logprobs": lists(THINK_TOKENS),
        "teacher_think_logprobs": lists(THINK_TOKENS),
    }
    return pa.table(
        [columns.get(field.name, pa.nulls(ROWS, field.type)) for field in SCORES], schema=SCORES
    )


def fill(store: Store) -> list[Manifest]:
    """Commit the artifacts."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "scores.parquet"
        pq.write_table(scores_table(), source, compression="zstd")
        return [_commit(store, source, number) for number in range(ARTIFACTS)]


def _commit(store: Store, source: Path, number: int) -> Manifest:
    attempt = store.begin(Ref(kind="scores", key=f"{number:016x}"))
    (attempt.out / "scores.parquet").write_bytes(source.read_bytes())
    now = datetime.now(UTC)
    return store.commit(
        Manifest(
            ref=attempt.ref, attempt=attempt.id, stage="trace-scoring", stage_version=1,
            label=f"trace-scoring[{number}]", profile="benchmark", seed=0, config={}, inputs={},
            files=store.describe(attempt), metrics={}, packages={}, git_commit=None,
            flow_run_id=None, started_at=now, finished_at=now, seconds=0, gpu_seconds=0,
            device="cpu", threads=1,
        )
    )  # fmt: skip


# ---------------------------------------------------------------- the two ways
def read_parquet(store: Store, manifests: list[Manifest]) -> duckdb.DuckDBPyConnection:
    """A view `scores` over DuckDB's own Parquet reader; `run` is the path of a row's file."""
    connection = duckdb.connect()
    scheme = ""
    if not store.files.is_local:
        # Of fsspec's caches the quickest here; its default reads ahead.
        fs = s3fs.S3FileSystem(default_cache_type="bytes", skip_instance_cache=True)
        connection.register_filesystem(fs)
        scheme = "s3://"
    files = [f"{scheme}{store.data_path(manifest)}/scores.parquet" for manifest in manifests]
    connection.execute(
        f"create view scores as select * from read_parquet({files}, filename = 'run')"
    )
    return connection


AGGREGATE = "select rank, count(*), round(avg(reward), 9) from scores group by rank order by rank"
LISTS = (
    "select count(*), round(sum(list_sum(teacher_think_logprobs) - "
    "list_sum(student_think_logprobs)), 3) from scores"
)
ONE_RUN = "select count(*), round(avg(reward), 9) from scores where run = ?"
QUERIES = {
    "scan, aggregate": AGGREGATE, "scan, log-prob lists": LISTS, "one run": ONE_RUN,
}  # fmt: skip


def timed(
    connection: duckdb.DuckDBPyConnection, sql: str, run: str
) -> tuple[float, float, list[tuple[object, ...]]]:
    """Seconds of the first time, the least seconds of all times, and the rows."""
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        rows = connection.execute(sql, [run] if "?" in sql else []).fetchall()
        seconds.append(time.perf_counter() - started)
    return seconds[0], min(seconds), rows


def compare(name: str, store: Store) -> None:
    """Print the seconds of both ways on one store."""
    started = time.perf_counter()
    manifests = fill(store)
    size = sum(manifest.bytes for manifest in manifests) / 1e6
    print(
        f"\n{name}: {ARTIFACTS} artifacts, {ARTIFACTS * ROWS / 1e6:g}M rows, {size:.0f} MB "
        f"(written in {time.perf_counter() - started:.1f} s)"
    )
    started = time.perf_counter()
    connect(store).close()
    print(f"{'connect':<22}{time.perf_counter() - started:6.3f} s")
    path = (
        f"{'' if store.files.is_local else 's3://'}{store.data_path(manifests[-1])}/scores.parquet"
    )
    print(f"{'':<22}{'registered dataset':>20}{'read_parquet':>20}{'ratio':>14}")
    print(f"{'':<22}{'first':>10}{'best':>10}{'first':>10}{'best':>10}{'first':>8}{'best':>6}")
    for query, sql in QUERIES.items():
        with connect(store) as ours, read_parquet(store, manifests) as theirs:
            first, best, rows = timed(ours, sql, manifests[-1].ref.key)
            their_first, their_best, their_rows = timed(theirs, sql, path)
        assert rows == their_rows, f"{rows} and {their_rows}"
        print(
            f"{query:<22}{first:8.3f} s{best:8.3f} s{their_first:8.3f} s{their_best:8.3f} s"
            f"{their_first / first:8.1f}{their_best / best:6.1f}"
        )


@contextmanager
def s3_server(folder: Path) -> Iterator[None]:
    """A server on loopback; the environment holds its endpoint and keys."""
    port = s3.free_port()
    command, opened = s3.command(folder, port), s3.access(folder, port)
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
    )
    try:
        s3.wait_ready(opened, lambda: process.poll() is None)
        s3.make_bucket(opened, BUCKET)
        os.environ.update(opened.environment())
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Both stores."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        compare("local disk", Store(f"{folder}/store"))
        (Path(folder) / "s3").mkdir()
        with s3_server(Path(folder) / "s3"):
            compare("S3 on loopback", Store(f"s3://{BUCKET}/store"))


if __name__ == "__main__":
    main()
