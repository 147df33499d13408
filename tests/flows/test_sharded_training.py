"""`resources.sharding=fsdp`, as a user runs it: the models and losses of one process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlt_core.rows import read_rows
from rlt_core.store import Manifest, Store
from tests.flows.conftest import Rlt

SHARDED = ("--set", "resources.processes=2", "--set", "resources.sharding=fsdp")


@pytest.fixture
def store(smoke_store: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "store"
    shutil.copytree(smoke_store, copy)
    return copy


def forget(store: Path, name: str) -> Manifest:
    """Take an artifact out of the store, as if it had never been made."""
    opened = Store(str(store))
    manifest = opened.find(f"smoke/{name}")
    opened.remove(manifest.ref)
    return manifest


def local(store: Path, manifest: Manifest) -> Path:
    opened = Store(str(store))
    found = opened.manifest(manifest.ref.kind, manifest.ref.key)
    assert found is not None
    return opened.local(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "columns"),
    [
        ("teacher-sft", ["loss", "grad_norm", "tokens"]),
        ("teacher-grpo", ["loss", "reward", "reward_std", "r_ss", "r_kl", "completion_tokens"]),
    ],
)
def test_two_that_share_the_weights_train_as_one_does(
    rlt: Rlt, smoke_store: Path, store: Path, stage: str, columns: list[str]
) -> None:
    forgotten = forget(store, f"{stage}@0")
    done = rlt("run", stage, "--profile", "smoke", "--store", str(store), *SHARDED)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = local(smoke_store, forgotten), local(store, forgotten)
    first, second = read_rows(one, "train_steps"), read_rows(two, "train_steps")
    assert len(first) == len(second) > 1
    for here, there in zip(first, second, strict=True):
        for name in columns:
            assert there[name] == pytest.approx(here[name], rel=1e-3, abs=1e-5), name
    mine, theirs = (load_file(out / "model" / "model.safetensors") for out in (one, two))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_single_process_is_refused_in_one_line(rlt: Rlt, store: Path) -> None:
    forget(store, "teacher-sft@0")
    done = rlt("run", "teacher-sft", "--profile", "smoke", "--store", str(store), *SHARDED[2:])
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2, said
    assert "sharding=fsdp shares a model out" in said and "teacher-sft.processes" in said
    assert "Traceback" not in said
