"""Time the pages of `rlt traces` on a store of 100,000 scored traces, and measure its memory.

    python -m infra.benchmarks.explorer [--traces N] [--think-tokens T]

Pages are asked for as a browser does. `first` is a page with filters nobody asked for before,
`next` follows its link. Fails if a first page takes more than 1 s or a next one more than 300 ms.
"""

import argparse
import html
import multiprocessing
import re
import resource
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from starlette.testclient import TestClient

from infra.benchmarks.sql import scores_table
from infra.sample_manifest import sample_manifest
from rlt_core.config import RewardSpec
from rlt_core.explorer.app import create_app
from rlt_core.explorer.queries import Library
from rlt_core.rows import write_table
from rlt_core.sql.schemas import TABLES
from rlt_core.store import Manifest, Ref, Store

SHARD_TRACES = 2000
WORDS = ["so", "we", "add", "carry", "the", "one", "multiply", "divide", "check", "sum", "half"]
FIRST_S, NEXT_S = 1.0, 0.3
PATHS = (
    "/", "/?sort=explanations", "/traces", "/traces?sort=longest&is=unclosed", "/traces?max-rank=1",
    "/traces?min-reward=-1&max-reward=1&sort=lowest", "/traces?q=carry+the+one",
)  # fmt: skip


def _commit(store: Store, kind: str, stage: str, tables: Mapping[str, pa.Table],
            inputs: Mapping[str, Manifest]) -> Manifest:  # fmt: skip
    """Commit tables in shards."""
    attempt = store.begin(Ref(kind=kind, key=f"{len(stage):x}".zfill(16)))  # type: ignore[arg-type]
    for name, table in tables.items():
        for start in range(0, table.num_rows, SHARD_TRACES):
            file = attempt.out / name / f"{start:08}.parquet"
            write_table(file, table.slice(start, SHARD_TRACES))
    return store.commit(
        sample_manifest(
            attempt.ref, attempt.id, store.describe(attempt), stage=stage, label=f"{stage}[rlt]",
            config={"reward": RewardSpec().model_dump()},
            inputs={name: one.ref for name, one in inputs.items()},
        )
    )  # fmt: skip


def fill(place: str, traces: int, think_tokens: int) -> None:
    """Commit questions, traces and scores."""
    store = Store(place)
    scores, rng = scores_table(traces, think_tokens), np.random.default_rng(1)
    texts = [" ".join(words) for words in rng.choice(WORDS, (traces, think_tokens)).tolist()]

    def table(name: str, **columns: object) -> pa.Table:
        rows = len(next(iter(columns.values())))  # type: ignore[arg-type]
        nulls = {field.name: pa.nulls(rows, field.type) for field in TABLES[name]}
        return pa.table({**nulls, **columns}, schema=TABLES[name])

    names = scores["question_id"].unique().to_pylist()
    asked = [f"What is {number} plus {number + 1}?" for number in range(len(names))]
    questions = {"questions": table("questions", question_id=names, question=asked, solution=asked)}
    prepared = _commit(store, "dataset", "dataset-prep", questions, {})
    same = {name: scores[name] for name in ("trace_id", "question_id", "teacher", "sample")}
    written = {"traces": table("traces", **same, text=texts)}
    inputs = {"questions": prepared}
    inputs["traces"] = _commit(store, "traces", "trace-generation", written, inputs)
    _commit(store, "scores", "trace-scoring", {"scores": scores}, inputs)


def _timed(client: TestClient, path: str) -> tuple[float, str]:
    started = time.perf_counter()
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return time.perf_counter() - started, answer.text


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill a store and read its pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--traces", type=int, default=100_000)
    parser.add_argument("--think-tokens", type=int, default=100)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"{folder}/store")
        filling = multiprocessing.get_context("spawn").Process(
            target=fill, args=(str(store), given.traces, given.think_tokens)
        )
        filling.start()  # its memory is not that of the pages
        filling.join()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        started = time.perf_counter()
        library = Library(store)
        size = sum(each.bytes for each in store.manifests()) / 1e6
        print(
            f"{given.traces:,} traces, {size:.0f} MB; index {time.perf_counter() - started:.1f} s"
        )
        client = TestClient(create_app(library, "token", 1), base_url="http://127.0.0.1:1")
        _timed(client, "/?token=token")
        slow = []
        for path in PATHS:
            first, page = _timed(client, path)
            nexts: list[float] = []
            while len(nexts) < 5 and (link := re.search(r'rel="next" href="([^"]+)"', page)):
                seconds, page = _timed(client, html.unescape(link[1]))
                nexts.append(seconds)
            median, worst = statistics.median(nexts or [0.0]), max(nexts, default=0.0)
            print(f"{path:<50} first {first:.3f} s, next {median:.3f} s, at most {worst:.3f} s")
            slow += [path] if first > FIRST_S or median > NEXT_S else []
        _, page = _timed(client, "/traces")
        for kind in ("trace", "question"):
            path = html.unescape(re.findall(rf'href="(/{kind}/[^"]+)"', page)[0])
            seconds, page = _timed(client, path)
            print(f"{'/' + kind:<50} first {seconds:.3f} s")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(f"peak memory {peak:.0f} MB; {before:.0f} MB before the index")
    if slow:
        raise SystemExit(f"too slow: {', '.join(slow)}")


if __name__ == "__main__":
    main()
