"""Two processes on one machine compute what one does, and resume together."""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from training_runs import assert_same_weights, launch, rollouts, steps, weights

from rlt_core.models import load_model, load_tokenizer, save_model
from rlt_core.rows import read_rows

SCRIPT = Path(__file__).with_name("grpo_process.py")
CONFIG = {"steps": 4, "questions_per_step": 3, "learning_rate": 1e-3, "max_completion_tokens": 8}
RECORDED, LORA = {"teacher_logprobs": "rollout"}, {"lora": {"rank": 4}, "reference_sync": None}


def run(
    processes: int, model: Path, folder: Path, sharding: str = "none",
    config: Mapping[str, Any] = MappingProxyType({}), **options: object,
) -> int:  # fmt: skip
    """Exit status. `config`: changes of it."""
    resources = {"processes": 2, "sharding": sharding if processes > 1 else "none"}
    options |= {"config": CONFIG | dict(config), "resources": resources}
    return launch(SCRIPT, processes, model, folder, **options).returncode


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Callable[..., Path]:
    """The run of one process with some options, once."""

    @cache
    def of(config: str = "{}") -> Path:
        folder = tmp_path_factory.mktemp("alone")
        assert run(1, model, folder, config=json.loads(config)) == 0
        return folder

    return of


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path, model: Path, alone: Callable[..., Path]) -> None:
    one, two, broken = alone(), tmp_path / "two", tmp_path / "broken"
    assert run(2, model, two) == 0
    assert_same_weights(one / "out", two / "out", 1e-5)
    assert_same_steps(steps(one / "out"), steps(two / "out"))
    assert run(2, model, broken, stop=3) != 0
    assert not (broken / "out").exists()
    assert run(2, model, broken) == 0
    assert weights(broken / "out") == weights(two / "out")
    assert rollouts(broken / "out") == rollouts(two / "out")
    for row, other in zip(
        *(read_rows(each / "out", "rollouts") for each in (one, two)), strict=True
    ):
        for name in ("step", "question_id", "sample", "text"):
            assert row[name] == other[name]
        for name in ("reward", "advantage", "student_think_logprobs"):
            assert row[name] == pytest.approx(other[name], rel=1e-2, abs=1e-4), name


@pytest.mark.slow
def test_two_that_share_the_weights_are_one(
    tmp_path: Path, model: Path, alone: Callable[..., Path]
) -> None:
    """Rollouts, rewards, updates and the reference, which is synced; then with an interruption,
    and ended by one process that holds all."""
    one, (two, broken, other) = alone(), (tmp_path / name for name in ("two", "broken", "other"))
    assert run(2, model, two, sharding="fsdp") == 0
    assert_same_weights(one / "out", two / "out", 1e-5)
    assert_same_steps(steps(one / "out"), steps(two / "out"))
    assert run(2, model, broken, stop=3, sharding="fsdp") != 0
    assert not (broken / "out").exists()
    shutil.copytree(broken, other)
    assert run(2, model, broken, sharding="fsdp") == 0
    assert weights(broken / "out") == weights(two / "out")
    assert run(1, model, other) == 0
    assert_same_weights(one / "out", other / "out", 1e-5)


@pytest.mark.slow
def test_sharded_from_a_model_that_a_stage_has_saved_in_bfloat16(
    tmp_path: Path, model: Path
) -> None:
    """Policy and reference are read as they were saved and moved in float32."""
    saved = tmp_path / "model"
    save_model(load_model(model, "bfloat16"), load_tokenizer(model), saved)
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(1, saved, one) == 0
    assert run(2, saved, two, sharding="fsdp") == 0
    assert_same_weights(one / "out", two / "out", 1e-5)
    assert_same_steps(steps(one / "out"), steps(two / "out"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharding", "config"),
    [("fsdp", RECORDED), ("fsdp", LORA), ("none", RECORDED)],
    ids=["sharded-recorded", "sharded-lora", "recorded"],
)
def test_with_options(
    tmp_path: Path, model: Path, alone: Callable[..., Path], sharding: str, config: dict[str, Any]
) -> None:
    one, two = alone(json.dumps(config)), tmp_path / "two"
    assert run(2, model, two, sharding, config) == 0
    assert_same_weights(one / "out", two / "out", 1e-5)
    assert_same_steps(steps(one / "out"), steps(two / "out"))
    for row in steps(two / "out"):
        assert 0 < row["rollout_gap_mean"] <= row["rollout_gap_max"] < 1e-4


DIFFERENT = {"stage", "rollout_gap_mean", "rollout_gap_max", "reference_kl"}
"""A gap is rounding alone; TRL's KL is a mean of micro-batches' means over tokens."""


def assert_same_steps(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    """Rewards, their parts and the diagnostics' means, over completions of all processes."""
    assert len(one) == len(two) == 4
    for first, second in zip(one, two, strict=True):
        assert first["copied"] is not None and first["compression"] is None
        for name in set(first) - DIFFERENT:
            # rounding alone: gradients are summed in another order
            expected = first[name] and pytest.approx(first[name], rel=1e-3, abs=1e-5)
            assert second[name] == expected, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"), [("raised", "broken"), ("returned", "its reward is inf")]
)
def test_one_process_without_a_reward_stops_both(
    tmp_path: Path, model: Path, fault: str, message: str
) -> None:
    folder = tmp_path / "run"
    assert run(2, model, folder, fault=fault) != 0
    assert not (folder / "out").exists()
    assert message in (folder / "error-1").read_text()
