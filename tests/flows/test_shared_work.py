"""A stage's work shared by several processes: the same results, one owner, no process left."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlt_core.rows import read_rows
from rlt_core.store import Manifest, Store
from tests.flows.conftest import COMMAND, Rlt, environment

TWO = ("--set", "resources.processes=2")
EXACT = {"question_id", "trace_id", "sample", "status", "rank", "think_tokens", "step", "tokens"}


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


def rows(store: Path, manifest: Manifest, table: str) -> list[dict[str, Any]]:
    opened = Store(str(store))
    found = opened.manifest(manifest.ref.kind, manifest.ref.key)
    assert found is not None
    return read_rows(opened.local(found), table)


def assert_same(
    one: list[dict[str, Any]], two: list[dict[str, Any]], columns: Iterable[str]
) -> None:
    assert len(one) == len(two) > 1
    for first, second in zip(one, two, strict=True):
        for name in columns:
            exact = name in EXACT or first[name] is None
            expected = first[name] if exact else pytest.approx(first[name], rel=1e-3, abs=1e-5)
            assert second[name] == expected, name


def test_two_processes_train_write_and_score_as_one_does(
    rlt: Rlt, smoke_store: Path, store: Path
) -> None:
    teacher, traces, scores = (
        forget(store, name)
        for name in ("teacher-sft@0", "trace-generation[rlt]@0", "trace-scoring[rlt]@0")
    )
    done = rlt("run", "--profile", "smoke", "--store", str(store), *TWO,
               "--set", "resources.shard_questions=3")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(
        rows(smoke_store, teacher, "train_steps"), rows(store, teacher, "train_steps"),
        ["step", "loss", "grad_norm", "learning_rate", "tokens"],
    )  # fmt: skip
    assert rows(smoke_store, traces, "traces") == rows(store, traces, "traces")
    assert_same(
        rows(smoke_store, scores, "scores"), rows(store, scores, "scores"),
        ["trace_id", "status", "reward", "r_ss", "r_kl", "rank"],
    )  # fmt: skip
    made = Store(str(store)).find("smoke/teacher-sft@0")
    assert (made.threads, made.gpu_seconds) == (2, 0), "of both processes"


@pytest.mark.slow
def test_two_processes_reward_and_update_as_one_does(
    rlt: Rlt, smoke_store: Path, store: Path
) -> None:
    """The same completions are drawn, since each has a seed of its own."""
    teacher = forget(store, "teacher-grpo@0")
    done = rlt("run", "teacher-grpo", "--profile", "smoke", "--store", str(store), *TWO)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(
        rows(smoke_store, teacher, "train_steps"), rows(store, teacher, "train_steps"),
        ["step", "loss", "reward", "reward_std", "r_ss", "r_kl", "completion_tokens"],
    )  # fmt: skip


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_one_line(rlt: Rlt, store: Path) -> None:
    forget(store, "student-sft[rlt]@0")
    done = rlt("run", "student-sft", "--profile", "smoke", "--store", str(store),
               "--set", "resources.processes=3")  # fmt: skip
    assert done.returncode == 2
    said = " ".join((done.stdout + done.stderr).split())
    assert "a batch of 4 cannot be shared by 3 processes" in said
    assert "Traceback" not in said


# ---------------------------------------------------------------- faults
LONG = ("--set", "teacher_sft.steps=4000", "--set", "resources.checkpoint_every_steps=5")


def start(store: Path, home: Path) -> subprocess.Popen[str]:
    """A run whose warm-up takes two processes a minute or more."""
    command = [*COMMAND, "run", "teacher-sft", "--profile", "smoke", "--store", str(store), *TWO]
    return subprocess.Popen(
        [*command, *LONG], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment(home),
    )  # fmt: skip


def shares(store: Path, timeout_s: float = 120) -> list[psutil.Process]:
    """The processes that share the work, once they have left a new checkpoint."""
    deadline, before = time.monotonic() + timeout_s, checkpoints(store)
    while not (checkpoints(store) - before and len(found := running_shares()) == 2):
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.2)
    return found


def checkpoints(store: Path) -> set[Path]:
    return set((store / "work").glob("*/checkpoints/*/manifest.json"))


def running_shares() -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if is_share(one)]


def is_share(process: psutil.Process) -> bool:
    line = process.info["cmdline"] or []
    return "tasks.distributed" in line and "torch.distributed.run" not in line


def assert_gone(processes: Iterable[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=45)
    assert not alive


@pytest.mark.slow
def test_ctrl_c_stops_both_at_a_checkpoint_and_the_same_command_goes_on(
    store: Path, home: Path
) -> None:
    process = start(store, home)
    both = shares(store)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 130, said
    assert "the same command goes on" in said and "Traceback" not in said
    assert_gone(both)
    again = start(store, home)
    shares(store)
    again.send_signal(signal.SIGINT)
    said, _ = again.communicate(timeout=90)
    assert again.returncode == 130, said


@pytest.mark.slow
def test_a_signal_to_every_process_stops_all_at_a_checkpoint(store: Path, home: Path) -> None:
    """Slurm sends its warning to whatever a job has started."""
    process = start(store, home)
    both = shares(store)
    agent = both[0].parent()
    assert agent is not None
    owner = agent.parent()
    assert owner is not None
    for each in (*both, agent, owner):
        each.terminate()
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert_gone(both)


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", ["quick", "slow"])
def test_one_killed_process_ends_the_other_and_the_run(
    store: Path, home: Path, torchrun: str
) -> None:
    """Where torchrun does not end the other at once, that fails, too, but for the first's death."""
    process = start(store, home)
    one, other = shares(store)
    agent = one.parent()
    assert agent is not None
    if torchrun == "slow":
        agent.suspend()
    one.kill()
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "one of the processes that shared the work died" in said
    assert_gone([one, other])


@pytest.mark.slow
def test_processes_die_with_their_owner(store: Path, home: Path) -> None:
    process = start(store, home)
    both = shares(store)
    owners = [one for one in psutil.Process(process.pid).children(recursive=True)]
    for owner in [psutil.Process(process.pid), *owners]:
        if owner not in both:
            owner.kill()
    process.communicate(timeout=90)
    assert_gone(both)
