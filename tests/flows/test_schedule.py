"""Longest first, and a budget that no node exceeds."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import gpu_driver
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.cores import Cores
from flows.schedule import Budget, hours, longest_ways
from rlt_core.estimate import NodeEstimate, estimates
from rlt_core.experiments import targets
from rlt_core.graph import upstream
from rlt_core.overrides import load_config
from rlt_core.store import Store
from tests.flows.conftest import Rlt

CONFIG = load_config("tiny")
NODES = upstream(targets("full-pipeline", CONFIG))
FOUND = estimates(CONFIG, NODES)


def test_nothing_that_reads_a_node_has_a_longer_way_to_the_end() -> None:
    ways = longest_ways(NODES, {key: hours(found) for key, found in FOUND.items()})
    assert ways.keys() == {node.key for node in NODES}
    for node in NODES:
        for parent in node.inputs.values():
            least = ways[node.key] + hours(FOUND[parent.key])
            assert ways[parent.key] >= least - 1e-12
    names = sorted(NODES, key=lambda node: -ways[node.key])
    assert names[0].stage.name == "dataset-prep", "all begins there"
    grpo = next(node for node in NODES if node.stage.name == "teacher-grpo")
    students = [n for n in NODES if n.stage.name == "student-sft" and n.variant == "dataset"]
    assert all(ways[grpo.key] > ways[student.key] for student in students)


def test_cores_go_to_the_highest_priority_that_waits() -> None:
    cores, order = Cores(1), list[int]()

    def work(priority: int) -> None:
        with cores.take(1, priority):
            order.append(priority)

    threads = [threading.Thread(target=work, args=[priority]) for priority in (1, 3, 2)]
    with cores.take(1):
        for thread in threads:
            thread.start()
            time.sleep(0.05)
    for thread in threads:
        thread.join(10)
    assert order == [3, 2, 1]


def budget_of(limit: float, needs: dict[str, float | None], gpus: int = 8) -> Budget:
    found = {key: NodeEstimate(gpu_hours=need) for key, need in needs.items()}
    return Budget(limit, found, {key: 0 if key == "cpu" else gpus for key in needs})


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20), st.floats(0, 30))
def test_what_is_under_way_never_exceeds_the_budget(needs: list[float], limit: float) -> None:
    budget = budget_of(limit, {str(i): need for i, need in enumerate(needs)})
    admitted = [need for i, need in enumerate(needs) if budget.admit(str(i)) is None]
    assert sum(admitted) <= limit + 1e-9
    assert not needs or (needs[0] <= limit) == (bool(admitted) and admitted[0] == needs[0])


def test_what_a_node_really_took_counts() -> None:
    budget = budget_of(10, {"a": 6, "b": 6, "c": 5})
    assert budget.admit("a") is None
    refused = budget.admit("b")
    assert refused and "takes about 6 GPU-hours, and of 10 there are 4 left" in refused
    budget.settle("a", gpu_seconds=2 * 3600)
    assert budget.spent == pytest.approx(2)
    assert budget.admit("b") is None
    assert budget.admit("c")


def test_a_node_that_failed_has_taken_all_its_gpus_meanwhile() -> None:
    budget = budget_of(10, {"a": 1}, gpus=8)
    assert budget.admit("a") is None
    time.sleep(0.05)
    budget.settle("a", gpu_seconds=None)
    assert 8 * 0.05 / 3600 <= budget.spent < 8 * 5 / 3600


def test_a_node_on_gpus_of_unknown_size_does_not_begin_under_a_budget() -> None:
    budget = budget_of(10, {"a": None, "cpu": None})
    assert "rlt fetch" in (budget.admit("a") or "")
    assert budget.admit("cpu") is None


def test_a_run_stops_before_the_node_that_would_exceed_it(
    rlt: Rlt, smoke_store: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(smoke_store, store)
    changed = ["--set", "teacher_sft.steps=2", "--set", "resources.stages.teacher-sft.device=cuda"]
    done = rlt("run", "teacher-sft", "--profile", "smoke", "--store", str(store), *changed,
               "--budget-gpu-hours", "0")  # fmt: skip
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, said
    assert "over budget teacher-sft@0: it takes about" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("gpus", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_nodes_run_side_by_side_while_there_are_gpus(
    gpus: int, rlt: Rlt, smoke_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_driver.install(tmp_path, gpus, monkeypatch)
    store = tmp_path / "store"
    shutil.copytree(smoke_store, store)
    done = rlt("run", "teacher-sft", "--profile", "smoke", "--store", str(store),
               "--set", "seeds=[1,2]", "--set", "resources.cores=1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    opened = Store(str(store))
    first, second = sorted(
        (opened.find(f"smoke/teacher-sft@{seed}") for seed in (1, 2)),
        key=lambda manifest: manifest.started_at,
    )
    assert (first.finished_at <= second.started_at) == (gpus == 1)
