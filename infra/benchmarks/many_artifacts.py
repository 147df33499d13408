"""Time the command line on a store of 20,000 artifacts on S3.

    python -m infra.benchmarks.many_artifacts [ARTIFACTS]

A real S3 server on loopback. The manifests are those of the pipeline's nodes, repeated with seed
after seed; each artifact has one small file, which no command here reads. Each command runs in a
process of its own: `plan` once on a machine that has nothing of the store, then each command
REPEATS times, of which the least counts.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path

from infra.benchmarks.sql import BUCKET
from infra.s3_server import serve
from infra.sample_manifest import manifest_of_node
from rlt_core.experiments import targets
from rlt_core.graph import Node, upstream
from rlt_core.overrides import load_config
from rlt_core.store import FileEntry, Manifest, Ref, Store
from rlt_core.store.manifest import SETTLED_S

REPEATS = 3
PARALLEL_WRITES = 32
CONTENT = b"."
PLAN = ["plan", "full-pipeline", "--profile", "smoke"]
COMMANDS = {
    "plan": PLAN,
    "sql": ["sql", "select stage, count(*) from artifacts group by all"],
    "artifacts list": ["artifacts", "list"],
    "artifacts gc": ["artifacts", "gc", "--dry-run"],
}


def manifests() -> Iterator[Manifest]:
    """Yield manifests of the pipeline, seed after seed."""
    nodes = upstream(targets("full-pipeline", load_config("tiny")))
    digest = hashlib.sha256(CONTENT).hexdigest()
    file = FileEntry(path="log.txt", sha256=digest, bytes=len(CONTENT))

    def ref(node: Node, seed: int) -> Ref:
        key = hashlib.sha256(f"{node.key} {seed}".encode()).hexdigest()[:16]
        return Ref(kind=node.stage.kind, key=key)

    for seed in count():
        for node in nodes:
            own = ref(node, seed)
            inputs = {name: ref(one, seed) for name, one in node.inputs.items()}
            yield manifest_of_node(node, own.key[:12], [file], ref=own, seed=seed, inputs=inputs)


def fill(store: Store, artifacts: int) -> None:
    """Write artifacts in the store's layout, each with its manifest last."""
    file_system = store.files.arrow()

    def write(each: Manifest) -> None:
        at = store.files.full(f"artifacts/{each.ref.kind}/{each.ref.key}.json")
        text = each.model_dump_json(indent=1).encode()
        for path, content in ((f"{store.data_path(each)}/log.txt", CONTENT), (at, text)):
            with file_system.open_output_stream(path) as stream:
                stream.write(content)

    with ThreadPoolExecutor(PARALLEL_WRITES) as pool:
        list(pool.map(write, islice(manifests(), artifacts)))


def timed(arguments: list[str], root: str) -> float:
    """Return the seconds of one command in a process of its own."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "flows.cli.app", *arguments, "--store", root]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    artifacts = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder) / "s3", BUCKET) as access:
        os.environ.update(access.environment())
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        root = f"s3://{BUCKET}/store"
        fill(Store(root), artifacts)
        time.sleep(SETTLED_S)
        print(f"{artifacts:,} artifacts\nplan, new machine: {timed(PLAN, root):.1f} s")
        for name, arguments in COMMANDS.items():
            print(f"{name}: {min(timed(arguments, root) for _ in range(REPEATS)):.1f} s")


if __name__ == "__main__":
    main()
