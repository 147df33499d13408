"""A node's work shared by processes, machines or attempts: the same results as of one process."""

import json
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from safetensors.torch import load_file

from rlt_core.experiments import targets
from rlt_core.graph import upstream
from rlt_core.overrides import load_config
from rlt_core.rows import read_rows
from rlt_core.store import Manifest, Store
from tasks.child_process import SHARED_SERVER, ChildProcesses
from tasks.execute import execute_node
from tasks.stage import NodeSpec
from tests.flows.conftest import Rlt, Served, forget

TWO = "resources.processes=2"
MACHINES = "resources.machines=2"
EXACT = {"question_id", "trace_id", "sample", "status", "rank", "think_tokens", "step", "tokens"}
SFT = ["step", "loss", "grad_norm", "learning_rate", "tokens"]
GRPO = ["step", "loss", "reward", "reward_std", "r_ss", "r_kl", "completion_tokens"]
EVALUATION = "evaluation[base]"


def specs(store: Path, name: str, *overrides: str) -> list[NodeSpec]:
    """A node of the full pipeline as it is sent to each of its machines."""
    config = load_config("smoke", overrides)
    [found] = [one for one in upstream(targets("full-pipeline", config)) if one.name == name]
    resources = config.resources.of(found.stage.name)
    spec = NodeSpec.of(found, str(store), "smoke", resources)
    machines = found.stage.machines(resources)
    sent = uuid4().hex if machines > 1 else ""
    return [spec.model_copy(update={"machine": i, "sent": sent}) for i in range(machines)]


def run(spec: NodeSpec, shares: list[float] | None = None) -> Manifest | None:
    """Compute a node in a child process; `shares` receives how much of it is done."""

    def progress(done: int, total: int, _: object) -> None:
        if shares is not None and total:
            shares.append(done / total)

    return execute_node(spec, ChildProcesses([]), progress, lambda _: None)


class Machines:
    """Two runs that share a node, each with children of its own."""

    def __init__(self, pool: ThreadPoolExecutor, parts: list[NodeSpec]) -> None:
        self.children = [ChildProcesses([]), ChildProcesses([])]
        self._pool, self._parts = pool, parts

    def start(self, machine: int) -> Future[Manifest | None]:
        part, children = self._parts[machine], self.children[machine]
        return self._pool.submit(execute_node, part, children, lambda *_: None, lambda _: None)


def folder(store: Path, manifest: Manifest) -> Path:
    """The files that a store has under the key of an artifact."""
    opened = Store(str(store))
    found = opened.manifest(manifest.ref.kind, manifest.ref.key)
    assert found is not None
    return opened.intact(found)


def rows(store: Path, manifest: Manifest, table: str) -> list[dict[str, Any]]:
    return read_rows(folder(store, manifest), table)


def tables(store: Path, manifest: Manifest) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder(store, manifest).glob("*.parquet")}


def shards(store: Path, key: str) -> dict[str, dict[str, Any]]:
    """Name -> manifest of a committed shard."""
    found = (store / "work" / key / "shards").glob("*/manifest.json")
    return {path.parent.name: json.loads(path.read_text()) for path in found}


def assert_same(
    one: list[dict[str, Any]], two: list[dict[str, Any]], columns: Iterable[str]
) -> None:
    assert len(one) == len(two) > 1
    for first, second in zip(one, two, strict=True):
        for name in columns:
            exact = name in EXACT or first[name] is None
            expected = first[name] if exact else pytest.approx(first[name], rel=1e-3, abs=1e-5)
            assert second[name] == expected, name


# ---------------------------------------------------------------- processes
@pytest.mark.slow
def test_two_processes_train_generate_and_score_as_one_does(
    rlt: Rlt, smoke_store: Path, store: Path
) -> None:
    teacher, traces, scores = (
        forget(store, name)
        for name in ("teacher-sft@0", "trace-generation[rlt]@0", "trace-scoring[rlt]@0")
    )
    done = rlt("run", "--profile", "smoke", "--store", str(store), "--set", TWO,
               "--set", "resources.shard_questions=3")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for manifest, table, columns in (
        (teacher, "train_steps", SFT),
        (scores, "scores", ["trace_id", "status", "reward", "r_ss", "r_kl", "rank"]),
    ):
        assert_same(rows(smoke_store, manifest, table), rows(store, manifest, table), columns)
    assert rows(smoke_store, traces, "traces") == rows(store, traces, "traces")
    made = Store(str(store)).find("smoke/teacher-sft@0")
    assert (made.threads, made.gpu_seconds) == (2, 0), "of both processes"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "sharding", "columns"),
    [("teacher-grpo", "none", GRPO), ("teacher-grpo", "fsdp", GRPO), ("teacher-sft", "fsdp", SFT)],
)
def test_two_processes_update_as_one_does(
    rlt: Rlt, smoke_store: Path, store: Path, stage: str, sharding: str, columns: list[str]
) -> None:
    """Also the sampled completions are the same, since each has a seed of its own."""
    teacher = forget(store, f"{stage}@0")
    done = rlt("run", stage, "--profile", "smoke", "--store", str(store), "--set", TWO,
               "--set", f"resources.sharding={sharding}")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    steps = rows(smoke_store, teacher, "train_steps"), rows(store, teacher, "train_steps")
    assert_same(*steps, columns)
    if sharding == "fsdp":
        one, two = (
            load_file(folder(place, teacher) / "model" / "model.safetensors")
            for place in (smoke_store, store)
        )
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_an_evaluation_has_the_same_bytes(smoke_store: Path, store: Path) -> None:
    """Shared by two processes, and taken up from the shards that another machine left."""
    whole = forget(store, EVALUATION)
    [shared] = specs(store, EVALUATION, TWO, "resources.shard_questions=1")
    made = run(shared)
    assert made and made.ref == whole.ref and made.metrics == whole.metrics
    assert sorted(tables(store, made)) == ["eval_samples.parquet", "eval_scores.parquet"]
    assert tables(store, made) == tables(smoke_store, whole)
    assert made.threads == 2 * whole.threads, "of both processes"

    forget(store, EVALUATION)
    first, second = specs(store, EVALUATION, MACHINES)
    assert run(second) is None
    left = shards(store, first.key)
    assert left and all(shard["metrics"]["machine"] == 1 for shard in left.values())
    assert not Store(str(store)).manifest("evaluation", first.key)
    made = run(first)
    assert made and tables(store, made) == tables(smoke_store, whole)


FORCED = ('evaluation.budget={"max_thinking_tokens": 4, "continuations": 1}',
          "evaluation.n=2", 'evaluation.samples={"countdown": 5}')  # fmt: skip


@pytest.mark.slow
def test_budget_forcing_and_numbers_of_completions_are_shared_alike(store: Path) -> None:
    [one] = specs(store, EVALUATION, *FORCED)
    alone = run(one)
    assert alone
    before = tables(store, alone)
    counts = {task: 0 for task in ("test", "countdown")}
    for row in rows(store, alone, "eval_samples"):
        counts[row["task"]] += 1
    assert counts == {"test": 6 * 2, "countdown": 6 * 5}
    Store(str(store)).remove(alone.ref)
    [two] = specs(store, EVALUATION, *FORCED, TWO, "resources.shard_questions=1")
    both = run(two)
    assert both and both.ref == alone.ref
    assert tables(store, both) == before


# ---------------------------------------------------------------- machines
def test_shards_that_another_machine_left_are_the_nodes(
    served: Served, smoke_store: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHARED_SERVER, served.environment()[SHARED_SERVER])
    traces = forget(store, "trace-generation[rlt]@0")
    first, second = specs(store, "trace-generation[rlt]@0", MACHINES, "resources.shard_questions=2")
    assert run(second) is None
    assert not Store(str(store)).manifest(traces.ref.kind, traces.ref.key)
    assert run(first)
    assert rows(smoke_store, traces, "traces") == rows(store, traces, "traces")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "sharding"), [(1, "none"), (1, "fsdp"), (2, "none"), (2, "hybrid")]
)
def test_two_machines_train_as_one_does(
    smoke_store: Path, store: Path, processes: int, sharding: str
) -> None:
    teacher = forget(store, "teacher-sft@0")
    layout = [MACHINES, f"resources.processes={processes}", f"resources.sharding={sharding}"]
    with ThreadPoolExecutor(2) as pool:
        machines = Machines(pool, specs(store, "teacher-sft@0", *layout))
        other = machines.start(1)  # it waits for the first
        time.sleep(1)
        assert machines.start(0).result(200) is not None
        assert other.result(60) is None
    steps = rows(smoke_store, teacher, "train_steps"), rows(store, teacher, "train_steps")
    assert_same(*steps, SFT)


# ---------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (
            ["resources.machines=2", "teacher_sft.steps=7"],
            ["takes as many runs of a worker pool", "resources.stages.teacher-sft.machines=1"],
        ),
        pytest.param(
            ["resources.processes=3", "teacher_sft.steps=7"],
            ["a batch of 8 cannot be shared by 3 processes"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["resources.sharding=fsdp", "teacher_sft.steps=7"],
            ["sharding=fsdp shares a model out", "teacher-sft.processes"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_layout_that_cannot_be_shared_is_refused_in_one_line(
    rlt: Rlt, store: Path, changes: list[str], messages: list[str]
) -> None:
    sets = [word for change in changes for word in ("--set", change)]
    done = rlt("run", "teacher-sft", "--profile", "smoke", "--store", str(store), *sets)
    output = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2, output
    assert all(message in output for message in messages), output
    assert "Traceback" not in output
