"""A stage that runs out of memory says so in one line, with what to change."""

import errno
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import torch

from rlt_core.config import StageResources
from rlt_core.errors import UserError
from rlt_core.estimate import hint
from rlt_core.progress import Progress
from rlt_core.stages import STAGES
from rlt_core.store import Store
from tasks.child_process import ChildFailed
from tasks.execute import execute_node
from tasks.stage import NodeSpec, StageContext, run_body

GPU_STAGES = [stage.name for stage in STAGES.values() if stage.pool == "gpu"]


def ctx(stage: str, folder: Path, **resources: Any) -> StageContext:
    spec = NodeSpec(
        store=str(folder), key="0123456789abcdef", stage=stage, config={}, inputs={}, label=stage,
        seed=0, profile="tiny", paths={}, resources=StageResources(**resources),
    )  # fmt: skip
    store = Store(str(folder))
    config = StageResources()
    return StageContext(folder, store.workspace(spec.key), Progress(), spec, config, {}, store)


def fail_with(error: Exception) -> Any:
    def run(_: StageContext) -> dict[str, float]:
        raise error

    return run


@pytest.mark.parametrize("stage", GPU_STAGES)
def test_every_stage_says_it_in_one_line(stage, tmp_path, monkeypatch):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.0 GiB. GPU 0 has\nmore")
    monkeypatch.setattr(f"{STAGES[stage].module}.run", fail_with(error))
    with pytest.raises(UserError) as refused:
        run_body(ctx(stage, tmp_path, device="cuda", engine="transformers"))
    said = str(refused.value)
    assert said.startswith(f"{stage}@0 ran out of memory (tried to allocate 2.0 GiB); ")
    assert "\n" not in said
    if STAGES[stage].shared:
        assert f"--set resources.stages.{stage}." in said


def too_large_for_numpy() -> BaseException:
    with pytest.raises(MemoryError) as raised:
        np.empty(1 << 55)
    return raised.value


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        too_large_for_numpy(),
        pa.ArrowMemoryError("malloc of size 64 failed"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        duckdb.OutOfMemoryException("Out of Memory Error: failed to pin block"),
        ValueError("No available memory for the cache blocks. Try increasing it."),
    ],
    ids=repr,
)
@pytest.mark.parametrize("stage", ["teacher-sft", "report"])
def test_every_library_says_it_in_its_own_way(stage, error, tmp_path, monkeypatch):
    def wrapped(_: StageContext) -> dict[str, float]:
        raise ValueError("while reading") from error

    for body in (fail_with(error), wrapped):
        monkeypatch.setattr(f"{STAGES[stage].module}.run", body)
        with pytest.raises(UserError, match=f"^{stage}@0 ran out of memory; it takes less with "):
            run_body(ctx(stage, tmp_path))


class Killed:
    """A child that the kernel kills."""

    def execute(self, *_: object, **__: object) -> None:
        failed = ChildFailed("the process died (SIGKILL)")
        failed.killed = True
        raise failed


def test_a_killed_child_is_one_line_with_the_fix(tmp_path):
    spec = ctx("teacher-grpo", tmp_path, micro_batch_size=4).spec
    with pytest.raises(ChildFailed) as failed:
        execute_node(spec, Killed(), lambda *_: None, lambda _: None)  # type: ignore[arg-type]
    said = str(failed.value)
    assert "\n" not in said and "killed" in said and str(tmp_path) in said
    assert "--set resources.stages.teacher-grpo.micro_batch_size=2" in said


def test_main_memory_counts_too_and_other_faults_stay_what_they_are(tmp_path, monkeypatch):
    def too_large(_: StageContext) -> dict[str, float]:
        torch.empty(1 << 60)
        return {}

    monkeypatch.setattr("tasks.stages.teacher_sft.run", too_large)
    with pytest.raises(
        UserError, match=r"^teacher-sft@0 ran out of memory \(tried to allocate \d+ bytes\); "
    ):
        run_body(ctx("teacher-sft", tmp_path))
    monkeypatch.setattr("tasks.stages.teacher_sft.run", fail_with(RuntimeError("else")))
    with pytest.raises(RuntimeError, match=r"^else$"):
        run_body(ctx("teacher-sft", tmp_path))


@pytest.mark.parametrize(
    ("stage", "resources", "change"),
    [
        ("teacher-grpo", {"micro_batch_size": 4}, "micro_batch_size=2"),
        ("student-sft", {"micro_batch_size": 1}, "gradient_checkpointing=true"),
        ("student-sft", {"micro_batch_size": 1, "gradient_checkpointing": True}, "processes=2"),
        ("trace-scoring", {}, "offload=true"),
        ("evaluation", {"engine": "vllm"}, "tensor_parallel=2"),
        ("evaluation", {}, "tokens_per_batch=8192"),
    ],
)
def test_the_hint_is_a_change_that_is_not_made_yet(stage, resources, change):
    said = hint(STAGES[stage], StageResources(**resources))
    assert said.startswith(f"--set resources.stages.{stage}.") and said.endswith(change)
