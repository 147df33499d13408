"""Batches, the order of nodes, and a budget that no node exceeds."""

import threading
import time
from pathlib import Path

import gpu_driver
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flows.cli.run import _compute_missing
from flows.planning import Plan
from flows.schedule import Budget, Slots, _tokens, by_stage, title_of
from infra.sample_manifest import sample_manifest
from rlt_core.estimate import NodeEstimate
from rlt_core.store import Ref, Store
from tests.flows.conftest import Rlt

PLAN = Plan.of("full-pipeline", "tiny", ["seeds=[0,1]"], store="/nonexistent")
SPECS = PLAN.specs()


# ---------------------------------------------------------------- batches
@given(
    st.integers(1, 20), st.sets(st.sampled_from(sorted(spec.key for spec in SPECS)), max_size=40)
)
def test_every_missing_node_is_sent_once_after_its_inputs(size: int, hits: set[str]) -> None:
    missing = [
        spec.model_copy(
            update={"resources": spec.resources.model_copy(update={"nodes_per_run": size})}
        )
        for spec in SPECS
        if spec.key not in hits
    ]
    sent = set(hits)
    for batch in by_stage(missing):
        assert 1 <= len(batch) <= size
        assert len({spec.stage for spec in batch}) == 1
        assert {ref.key for spec in batch for ref in spec.inputs.values()} <= sent
        keys = [spec.key for spec in batch]
        assert not sent & set(keys)
        sent |= set(keys)
    assert sent >= {spec.key for spec in missing}


def test_sixteen_students_are_two_runs_and_a_batch_of_one_has_the_nodes_name() -> None:
    students = [
        spec
        for spec in SPECS
        if spec.stage == "student-sft" and "[rank-" in spec.label and spec.seed == 0
    ]
    assert [title_of(batch) for batch in by_stage(students)] == ["8 student-sft", "8 student-sft"]
    assert title_of(SPECS[:1]) == SPECS[0].name


# ---------------------------------------------------------------- cores and GPUs
def test_a_large_node_is_not_kept_out_by_small_ones() -> None:
    slots, order = Slots(2), list[int]()

    def work(count: int) -> None:
        with slots.take(count):
            order.append(count)

    threads = [threading.Thread(target=work, args=[count]) for count in (3, 1)]
    with slots.take(1):
        for thread in threads:
            thread.start()
            time.sleep(0.05)
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order == [3, 1]


@pytest.mark.parametrize("gpus", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_nodes_run_side_by_side_while_there_are_gpus(
    gpus: int, rlt: Rlt, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_driver.install(tmp_path, gpus, monkeypatch)
    done = rlt("run", "teacher-sft", "--profile", "smoke", "--store", str(store),
               "--set", "seeds=[1,2]", "--set", "resources.cores=1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    opened = Store(str(store))
    first, second = sorted(
        (opened.find(f"smoke/teacher-sft@{seed}") for seed in (1, 2)),
        key=lambda manifest: manifest.started_at,
    )
    assert (first.finished_at <= second.started_at) == (gpus == 1)


# ---------------------------------------------------------------- budget
def budget_of(limit: float, needs: dict[str, float | None]) -> Budget:
    return Budget(
        limit,
        {
            key: NodeEstimate(gpu_hours=need, gpus=8, on_gpu=key != "cpu")
            for key, need in needs.items()
        },
    )


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20), st.floats(0, 30))
def test_running_nodes_never_exceed_the_budget(needs: list[float], limit: float) -> None:
    budget = budget_of(limit, {str(i): need for i, need in enumerate(needs)})
    admitted = [need for i, need in enumerate(needs) if budget.admit(str(i)) is None]
    assert sum(admitted) <= limit + 1e-9
    assert (needs[0] <= limit) == (bool(admitted) and admitted[0] == needs[0])


def test_ended_nodes_count_as_measured() -> None:
    budget = budget_of(10, {"a": 6, "b": 6, "c": 5})
    assert budget.admit("a") is None
    assert "takes about 6 GPU-hours; 4 of 10 are left" in (budget.admit("b") or "")
    budget.settle("a", gpu_seconds=2 * 3600)
    assert budget.spent == pytest.approx(2)
    assert budget.admit("b") is None and budget.admit("c")
    budget.settle("b", gpu_seconds=None)  # without a manifest
    assert budget.spent == pytest.approx(2 + 6)


def test_a_node_of_unknown_cost_starts_under_a_budget_only_on_a_cpu() -> None:
    budget = budget_of(10, {"a": None, "cpu": None})
    assert "rlt fetch" in (budget.admit("a") or "")
    assert budget.admit("cpu") is None


def test_a_run_ends_before_the_node_that_would_exceed_the_budget(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = ["teacher_sft.steps=2", "resources.stages.teacher-sft.device=cuda"]
    plan = Plan.of("teacher-sft", "smoke", changed, store=str(store), budget_gpu_hours=0)
    assert _compute_missing(plan, quiet=False) == 1
    output = " ".join(capsys.readouterr().out.split())
    assert "over budget teacher-sft@0: it takes about" in output


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_run_that_needs_a_gpu_is_refused_before_it_starts(rlt: Rlt, store: Path) -> None:
    changed = ["--set", "teacher_sft.steps=2", "--set", "resources.stages.teacher-sft.device=cuda"]
    done = rlt("run", "teacher-sft", "--profile", "smoke", "--store", str(store), *changed)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "device=cuda: torch finds no GPU on this machine" in done.stderr


def test_artifacts_whose_inputs_are_a_circle_tell_no_time() -> None:
    ref = Ref(kind="evaluation", key="1" * 16)
    circle = sample_manifest(ref, "a" * 12, inputs={"model": ref})
    assert _tokens(circle, {ref.key: circle}, PLAN) == 0
