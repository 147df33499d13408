"""An evaluation shared by several processes, machines or attempts: the same bytes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rlt_core.experiments import targets
from rlt_core.graph import upstream
from rlt_core.overrides import load_config
from rlt_core.store import Manifest, Store
from tasks.child_process import ChildFailed, ChildProcesses
from tasks.execute import execute_node
from tasks.stage import NodeSpec
from tests.flows.test_shared_work import assert_gone, forget, rows, running_shares

NAME = "evaluation[base]"
TWO = "resources.processes=2"


@pytest.fixture
def store(smoke_store: Path, tmp_path: Path) -> Path:
    """A finished run without the evaluation of the base model."""
    copy = tmp_path / "store"
    shutil.copytree(smoke_store, copy)
    forget(copy, NAME)
    return copy


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def spec(store: Path, *overrides: str, **fields: Any) -> NodeSpec:
    config = load_config("smoke", overrides)
    [found] = [one for one in upstream(targets("full-pipeline", config)) if one.name == NAME]
    made = NodeSpec.of(found, str(store), "smoke", config.resources.of("evaluation"))
    return made.model_copy(update=fields)


def run(sent: NodeSpec, shares: list[float] | None = None) -> Manifest:
    """Compute it; `shares` hears how much of it is done."""

    def progress(done: int, total: int, _: object) -> None:
        if shares is not None and total:
            shares.append(done / total)

    return execute_node(sent, ChildProcesses([]), progress, lambda _: None)


def tables(store: Path, manifest: Manifest) -> dict[str, bytes]:
    folder = Store(str(store)).local(manifest)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".parquet"}


def shards(store: Path, key: str) -> dict[str, dict[str, Any]]:
    """Name -> what it was committed with."""
    found = (store / "work" / key / "shards").glob("*/manifest.json")
    return {path.parent.name: json.loads(path.read_text()) for path in found}


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(smoke_store: Path, store: Path) -> None:
    whole = Store(str(smoke_store)).find(f"smoke/{NAME}")
    made = run(spec(store, TWO, "resources.shard_questions=1"))
    assert made.ref == whole.ref and made.metrics == whole.metrics
    assert sorted(tables(store, made)) == ["eval_samples.parquet", "eval_scores.parquet"]
    assert tables(store, made) == tables(smoke_store, whole)
    assert made.threads == 2 * whole.threads, "of both processes"


FORCED = ('evaluation.budget={"max_thinking_tokens": 4, "continuations": 1}',
          "evaluation.n=2", 'evaluation.samples={"countdown": 5}')  # fmt: skip


@pytest.mark.slow
def test_budget_forcing_and_the_numbers_of_completions_go_along(store: Path) -> None:
    alone = run(spec(store, *FORCED))
    one = tables(store, alone)
    counts = {task: 0 for task in ("test", "countdown")}
    for row in rows(store, alone, "eval_samples"):
        counts[row["task"]] += 1
    assert counts == {"test": 6 * 2, "countdown": 6 * 5}
    Store(str(store)).remove(alone.ref)
    both = run(spec(store, *FORCED, TWO, "resources.shard_questions=1"))
    assert both.ref == alone.ref
    assert tables(store, both) == one


@pytest.mark.slow
def test_what_another_machine_answered_is_the_evaluations(smoke_store: Path, store: Path) -> None:
    first, second = (
        spec(store, "resources.machines=2", sent="together", machine=machine) for machine in (0, 1)
    )
    execute_node(second, ChildProcesses([]), lambda *_: None, lambda _: None)
    left = shards(store, first.key)
    assert left and all(shard["metrics"]["machine"] == 1 for shard in left.values())
    assert not Store(str(store)).manifest("evaluation", first.key)
    made = run(first)
    assert tables(store, made) == tables(smoke_store, Store(str(smoke_store)).find(f"smoke/{NAME}"))


LONG = ("evaluation.n=16", 'evaluation.samples={"test": 96}', "evaluation.max_tokens=300",
        "resources.shard_questions=1")  # fmt: skip
SHARDS = 6 * 6 + 6


@pytest.mark.slow
def test_one_killed_in_a_shard_ends_all_and_the_next_attempt_goes_on(
    store: Path, pool: ThreadPoolExecutor
) -> None:
    sent = spec(store, *LONG, TWO)
    lost: Future[Manifest] = pool.submit(run, sent)
    deadline = time.monotonic() + 150
    while len(shards(store, sent.key)) < 3:
        assert time.monotonic() < deadline and not lost.done()
        time.sleep(0.05)
    one, other = running_shares()
    one.kill()
    with pytest.raises(ChildFailed):
        lost.result(90)
    assert_gone([one, other])
    before = shards(store, sent.key)
    shares: list[float] = []
    assert 3 <= len(before) < SHARDS, "in the middle"
    made = run(sent, shares)
    interrupted = tables(store, made)
    assert shares and min(shares) >= len(before) / SHARDS, "these were not computed again"
    Store(str(store)).remove(made.ref)
    assert tables(store, run(spec(store, *LONG))) == interrupted
