"""The command line on a store of many artifacts: `python -m infra.benchmarks.many_artifacts`.

    python -m infra.benchmarks.many_artifacts [ARTIFACTS] [FOLDER]

A store with `FEW` artifacts and one with `ARTIFACTS` (20,000), on a real S3 server on loopback, or
in FOLDER where one is given; both hold `TRACES` traces. Manifests are those of the pipeline's own
nodes, written anew for seed after seed; `TRACE_ARTIFACTS` hold real files of `traces`, the others a
small file that no command here reads. All is laid down in the store's layout by the store's file
system, many at once, without leases and workspaces.

Each command runs in a process of its own, from its start to its end: the plan first with nothing on
this machine ("cold": every manifest is read), then each command `REPEATS` times ("warm": the least
of them).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infra.benchmarks.sql_paths import BUCKET, s3_server
from rlt_core.experiments import targets
from rlt_core.graph import Node, upstream
from rlt_core.overrides import load_config
from rlt_core.schemas import TRACES as COLUMNS
from rlt_core.store import FileEntry, Manifest, Ref, Store
from rlt_core.store.manifests import SETTLED_S

ARTIFACTS = 20_000
FEW = 1_000
TRACES = 1_000_000
TRACE_ARTIFACTS = 400
TOKENS = 8
REPEATS = 3
AT_ONCE = 32
START = datetime(2026, 1, 1, tzinfo=UTC)
JOINED = (
    "select label, stage, count(*), avg(completion_tokens) from traces join artifacts "
    "using (run, label) group by all order by all"
)
PLAN = ["plan", "full-pipeline", "--profile", "smoke"]
COMMANDS = {
    "plan (all misses)": (PLAN, 10.0),
    "sql, count of traces": (["sql", "select count(*) from traces"], 5.0),
    "sql, traces by artifact": (["sql", JOINED], 5.0),
    "status": (["status"], None),
    "artifacts list": (["artifacts", "list"], None),
    "artifacts gc --dry-run": (["artifacts", "gc", "--dry-run"], None),
}
"""Name -> arguments and the most seconds when warm."""
NEW_MACHINE = {
    "plan, a new machine": (PLAN, None),
}
"""The same on machines that have nothing of the store."""


# ---------------------------------------------------------------- a store
def traces_table() -> pa.Table:
    """`traces` of one artifact, of a few tokens each."""
    rows = TRACES // TRACE_ARTIFACTS
    ids = pa.array([[(row * 7 + each) % 97 for each in range(TOKENS)] for row in range(rows)])
    columns = {
        "trace_id": pa.array([f"{row // 4:016x}-{row % 4}" for row in range(rows)]),
        "question_id": pa.array([f"{row // 4:016x}" for row in range(rows)]),
        "sample": pa.array([row % 4 for row in range(rows)]),
        "text": pa.array([f"{row} and {row % 9}" for row in range(rows)]),
        "token_ids": ids,
        "completion_ids": ids,
        "closed": pa.array([True] * rows),
        "completion_tokens": pa.array([TOKENS + row % 5 for row in range(rows)]),
    }
    return pa.table(
        [
            columns[field.name].cast(field.type) if field.name in columns
            else pa.nulls(rows, field.type)
            for field in COLUMNS
        ],
        schema=COLUMNS,
    )  # fmt: skip


def _again(key: str, seed: int) -> str:
    return hashlib.sha256(f"{key} {seed}".encode()).hexdigest()[:16]


def manifests(traces: FileEntry, small: FileEntry) -> Iterator[Manifest]:
    """Those of the pipeline, seed after seed; only the first `TRACE_ARTIFACTS` hold traces."""
    nodes = upstream(targets("full-pipeline", load_config("tiny")))
    of_traces = 0
    for seed in count():
        for node in nodes:
            has_traces = node.stage.name == "trace-generation"
            of_traces += has_traces
            if not has_traces or of_traces <= TRACE_ARTIFACTS:
                yield _manifest(node, seed, traces if has_traces else small)


def _manifest(node: Node, seed: int, file: FileEntry) -> Manifest:
    key = _again(node.key, seed)
    made = START + timedelta(minutes=seed)
    return Manifest(
        ref=Ref(kind=node.stage.kind, key=key), attempt=key[:12], stage=node.stage.name,
        stage_version=node.stage.version, label=node.label, profile="tiny", seed=seed,
        config=node.config.model_dump(mode="json"),
        inputs={
            name: Ref(kind=one.stage.kind, key=_again(one.key, seed))
            for name, one in node.inputs.items()
        },
        files=[file], metrics={"reward": -1.5 + seed % 7, "loss": 0.25},
        packages={name: "1.2.3" for name in ("python", "torch", "transformers", "trl", "pyarrow")},
        git_commit="0" * 40, flow_run_id=None, started_at=made,
        finished_at=made + timedelta(seconds=40), seconds=40.0, gpu_seconds=0.0, device="cpu",
        threads=2,
    )  # fmt: skip


def _chosen(artifacts: int, traces: FileEntry, small: FileEntry) -> Iterator[Manifest]:
    """So many, all that hold traces among them."""
    others = artifacts - TRACE_ARTIFACTS
    with_traces = TRACE_ARTIFACTS
    for one in manifests(traces, small):
        holds = one.stage == "trace-generation"
        if holds and with_traces:
            with_traces -= 1
            yield one
        elif not holds and others:
            others -= 1
            yield one
        if not with_traces and not others:
            return


def fill(store: Store, artifacts: int) -> None:
    """Lay the artifacts down, each with its file, its manifest last."""
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(traces_table(), Path(folder) / "traces.parquet", compression="zstd")
        data = {"traces.parquet": (Path(folder) / "traces.parquet").read_bytes(), "log.txt": b"."}
    entries = [
        FileEntry(
            path=name, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content),
            rows=TRACES // TRACE_ARTIFACTS if name.endswith(".parquet") else None,
        )
        for name, content in data.items()
    ]  # fmt: skip
    file_system = store.files.arrow()

    def write(path: str, content: bytes) -> None:
        if store.files.is_local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        with file_system.open_output_stream(path) as stream:
            stream.write(content)

    def lay_down(manifest: Manifest) -> None:
        for file in manifest.files:
            write(f"{store.data_path(manifest)}/{file.path}", data[file.path])
        base = store.files.full(f"artifacts/{manifest.ref.kind}/{manifest.ref.key}.json")
        write(base, manifest.model_dump_json(indent=1).encode())

    found = _chosen(artifacts, *entries)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while chunk := list(islice(found, 1000)):
            list(pool.map(lay_down, chunk))


# ---------------------------------------------------------------- measuring
def timed(arguments: list[str], root: str) -> float:
    """Seconds of one command in a process of its own. Raises SystemExit if it fails."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments, "--store", root],
        capture_output=True, text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"rlt {arguments[0]} failed:\n{done.stdout}{done.stderr}")
    return seconds


def measure(store: Store) -> dict[str, float]:
    """Seconds of each command, and of the first one where a machine is new."""
    seconds = {}
    for name, (arguments, _) in NEW_MACHINE.items():
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
        seconds[name] = timed(arguments, str(store))
    for name, (arguments, _) in COMMANDS.items():
        seconds[name] = min(timed(arguments, str(store)) for _ in range(REPEATS))
    return seconds


def compare(roots: dict[int, str]) -> None:
    """Fill the stores, wait until they have settled, print the table."""
    for artifacts, root in roots.items():
        started = time.perf_counter()
        fill(Store(root), artifacts)
        print(f"{artifacts} artifacts laid down in {time.perf_counter() - started:.0f} s")
    time.sleep(SETTLED_S)
    few, many = (measure(Store(root)) for root in roots.values())
    print(f"{'seconds':<28}{artifacts:>8}{'target':>8}{FEW:>8}{'ratio':>7}")
    for name, (_, target) in (NEW_MACHINE | COMMANDS).items():
        aim = f"{target:g}" if target else ""
        print(f"{name:<28}{many[name]:8.1f}{aim:>8}{few[name]:8.1f}{many[name] / few[name]:7.1f}")


def main() -> None:
    """On S3, or in a folder."""
    artifacts = int(sys.argv[1]) if len(sys.argv) > 1 else ARTIFACTS
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        if len(sys.argv) > 2:
            compare({size: f"{sys.argv[2]}/{size}" for size in (FEW, artifacts)})
            return
        (Path(folder) / "s3").mkdir()
        with s3_server(Path(folder) / "s3"):
            compare({size: f"s3://{BUCKET}/{size}" for size in (FEW, artifacts)})


if __name__ == "__main__":
    main()
