"""What a process that shares a node's work sees of its machine."""

import os

import pytest

from rlt_core.config import StageResources
from rlt_core.errors import UserError
from rlt_core.processes import require_gpus, take_gpus
from rlt_core.stages import STAGES


@pytest.mark.parametrize(
    ("visible", "rank", "parallel", "seen"),
    [
        (None, None, 1, "0"),  # alone on a machine of several: Trainer would use them all
        ("4,5,6,7", None, 1, "4"),
        (None, None, 2, "0,1"),
        (None, "3", 1, "3"),
        ("4,5,6,7", "1", 2, "6,7"),
        ("", "1", 1, ""),
    ],
)
def test_each_process_sees_its_own_gpus(
    visible: str | None,
    rank: str | None,
    parallel: int,
    seen: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4" if rank else "1")
    for name, value in {"CUDA_VISIBLE_DEVICES": visible, "LOCAL_RANK": rank}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    take_gpus(StageResources(), parallel)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
    assert ("LOCAL_RANK" in os.environ) == (rank is not None)
    if rank and seen:
        assert os.environ["LOCAL_RANK"] == "0", "of what it sees"


def test_what_computes_on_the_cpu_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    take_gpus(StageResources(device="cpu"), 1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"


def test_a_trainer_has_one_gpu_whatever_an_engine_is_split_over() -> None:
    """On a second one transformers' Trainer would double each step's batch."""
    resources = StageResources(engine="vllm", tensor_parallel=2, processes=4)
    assert STAGES["evaluation"].gpus(resources) == STAGES["trace-generation"].gpus(resources) == 8
    for stage in ("teacher-sft", "student-sft", "trace-scoring"):
        assert STAGES[stage].gpus_of_each(resources) == 1 and STAGES[stage].gpus(resources) == 4


def test_too_few_gpus_name_the_fields_to_lower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    resources = StageResources(engine="vllm", tensor_parallel=2)
    require_gpus(resources, 1)
    with pytest.raises(UserError, match=r"tensor_parallel=2 need 2 GPUs, and this machine shows 1"):
        require_gpus(resources, STAGES["evaluation"].gpus(resources))
