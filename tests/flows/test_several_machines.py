"""A node shared by several runs, as if each were on a machine of its own: the same results."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from rlt_core.errors import Stopped
from rlt_core.experiments import targets
from rlt_core.graph import upstream
from rlt_core.overrides import load_config
from rlt_core.store import Manifest, Store
from tasks.child_process import ChildFailed, ChildProcesses
from tasks.execute import execute_node
from tasks.stage import NodeSpec
from tests.flows.conftest import Rlt
from tests.flows.test_shared_work import assert_same, forget, rows, running_shares

TWO = ["resources.machines=2"]


@pytest.fixture
def store(smoke_store: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "store"
    shutil.copytree(smoke_store, copy)
    return copy


def specs(store: Path, name: str, *overrides: str) -> list[NodeSpec]:
    """The node as it is sent to each of its machines."""
    config = load_config("smoke", [*TWO, *overrides])
    [found] = [one for one in upstream(targets("full-pipeline", config)) if one.name == name]
    resources = config.resources.of(found.stage.name)
    spec = NodeSpec.of(found, str(store), "smoke", resources)
    sent = uuid4().hex
    return [spec.model_copy(update={"machine": i, "sent": sent}) for i in range(2)]


class Machines:
    """Two runs, each with children of its own."""

    def __init__(self, pool: ThreadPoolExecutor, parts: list[NodeSpec]) -> None:
        self.children = [ChildProcesses([]), ChildProcesses([])]
        self._pool, self._parts = pool, parts

    def start(self, machine: int) -> Future[Manifest | None]:
        return self._pool.submit(
            execute_node,
            self._parts[machine],
            self.children[machine],
            lambda *_: None,
            lambda _: None,
        )


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def test_shards_that_another_machine_left_are_the_nodes(
    pool: ThreadPoolExecutor, rlt: Rlt, smoke_store: Path, store: Path
) -> None:
    traces = forget(store, "trace-generation[rlt]@0")
    machines = Machines(pool, specs(store, traces.label + "@0", "resources.shard_questions=2"))
    machines.start(1).result(120)
    assert not Store(str(store)).manifest(traces.ref.kind, traces.ref.key)
    machines.start(0).result(120)
    assert rows(smoke_store, traces, "traces") == rows(store, traces, "traces")


def test_alone_on_one_machine_training_of_several_is_refused_before_anything_runs(
    rlt: Rlt, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    done = rlt("run", "teacher-sft", "--profile", "smoke", "--store", str(store), "--set", TWO[0])
    assert done.returncode == 2
    assert not list(store.glob("artifacts/*"))
    said = " ".join((done.stdout + done.stderr).split())
    assert "resources.machines=2 takes as many runs of a worker pool" in said
    assert "resources.stages.teacher-sft.machines=1" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "sharding"), [(1, "none"), (1, "fsdp"), (2, "none"), (2, "hybrid")]
)
def test_two_machines_train_as_one_does(
    pool: ThreadPoolExecutor, smoke_store: Path, store: Path, processes: int, sharding: str
) -> None:
    teacher = forget(store, "teacher-sft@0")
    layout = [f"resources.processes={processes}", f"resources.sharding={sharding}"]
    parts = specs(store, "teacher-sft@0", *layout)
    machines = Machines(pool, parts)
    other = machines.start(1)  # it waits for the first
    time.sleep(1)
    assert machines.start(0).result(200) is not None
    assert other.result(60) is None
    assert_same(
        rows(smoke_store, teacher, "train_steps"), rows(store, teacher, "train_steps"),
        ["step", "loss", "grad_norm", "learning_rate", "tokens"],
    )  # fmt: skip


LONG = ["teacher_sft.steps=4000", "resources.checkpoint_every_steps=5"]


def wait_for_a_checkpoint(store: Path, before: set[Path]) -> None:
    deadline = time.monotonic() + 150
    while not set((store / "work").glob("*/checkpoints/*/manifest.json")) - before:
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.2)


@pytest.mark.slow
def test_a_lost_machine_ends_the_node_and_what_it_left_is_gone_on_with(
    pool: ThreadPoolExecutor, store: Path
) -> None:
    parts = specs(store, "teacher-sft@0", *LONG)
    machines = Machines(pool, parts)
    first, other = machines.start(0), machines.start(1)
    wait_for_a_checkpoint(store, set())
    shares = running_shares()
    [of_the_other] = [one for one in shares if one.environ()["RANK"] == "1"]
    of_the_other.kill()
    for lost in (first, other):
        with pytest.raises(ChildFailed):
            lost.result(90)
    _, alive = psutil.wait_procs(shares, timeout=45)
    assert not alive

    before = set((store / "work").glob("*/checkpoints/*/manifest.json"))
    assert before
    again = Machines(pool, specs(store, "teacher-sft@0", *LONG))
    both = again.start(0), again.start(1)
    wait_for_a_checkpoint(store, before)
    for children in again.children:
        children.stop()
    for one in both:
        with pytest.raises(Stopped):
            one.result(90)


@pytest.mark.slow
def test_a_machine_that_waits_for_the_first_hears_the_wish_to_stop(
    store: Path, pool: ThreadPoolExecutor
) -> None:
    machines = Machines(pool, specs(store, "teacher-sft@0", *LONG))
    waiting = machines.start(1)
    time.sleep(8)
    assert not waiting.done()
    machines.children[1].stop()
    with pytest.raises(Stopped):
        waiting.result(40)
