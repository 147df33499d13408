"""Processes and machines that share a node are stopped or killed: none is left, work goes on."""

import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from rlt_core.errors import Stopped
from rlt_core.store import Manifest, Store
from tasks.child_process import ChildFailed
from tests.flows.conftest import COMMAND, environment, forget
from tests.flows.test_shared_work import (
    EVALUATION,
    MACHINES,
    TWO,
    Machines,
    run,
    shards,
    specs,
    tables,
)

pytestmark = pytest.mark.slow

LONG = ["teacher_sft.steps=4000", "resources.checkpoint_every_steps=5"]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def start(store: Path, home: Path) -> subprocess.Popen[str]:
    """A run whose warm-up takes two processes a minute or more."""
    sets = [word for change in (TWO, *LONG) for word in ("--set", change)]
    return subprocess.Popen(
        [*COMMAND, "run", "teacher-sft", "--profile", "smoke", "--store", str(store), *sets],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(home),
    )  # fmt: skip


def checkpoints(store: Path) -> set[Path]:
    return set((store / "work").glob("*/checkpoints/*/manifest.json"))


def sharing(store: Path, before: Iterable[Path], timeout_s: float = 150) -> list[psutil.Process]:
    """The two processes that share the work, once there is a new checkpoint."""
    deadline, before = time.monotonic() + timeout_s, set(before)
    while not (checkpoints(store) - before and len(found := running_shares()) == 2):
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.2)
    return found


def running_shares() -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if is_share(one)]


def is_share(process: psutil.Process) -> bool:
    line = process.info["cmdline"] or []
    return "tasks.distributed" in line and "torch.distributed.run" not in line


def assert_gone(processes: Iterable[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=45)
    assert not alive


# ---------------------------------------------------------------- processes of one machine
def test_ctrl_c_stops_both_at_a_checkpoint_and_the_same_command_goes_on(
    store: Path, home: Path
) -> None:
    both: list[psutil.Process] = []
    for _ in range(2):
        process = start(store, home)
        both += sharing(store, checkpoints(store))
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=90)
        assert process.returncode == 130, output
        assert "the same command continues" in output and "Traceback" not in output
    assert_gone(both)


def test_a_signal_to_every_process_stops_all_at_a_checkpoint(store: Path, home: Path) -> None:
    """Slurm sends its warning to every process of a job."""
    process = start(store, home)
    both = sharing(store, checkpoints(store))
    agent = both[0].parent()
    assert agent is not None
    owner = agent.parent()
    assert owner is not None
    for each in (*both, agent, owner):
        each.terminate()
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert_gone(both)


@pytest.mark.parametrize("torchrun", ["quick", "slow"])
def test_one_killed_process_ends_the_other_and_the_run(
    store: Path, home: Path, torchrun: str
) -> None:
    """If torchrun does not end the other process at once, that fails too, because of the first."""
    process = start(store, home)
    one, other = sharing(store, checkpoints(store))
    agent = one.parent()
    assert agent is not None
    if torchrun == "slow":
        agent.suspend()
    one.kill()
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "one of the processes that shared the work died" in output
    assert_gone([one, other])


def test_processes_die_with_their_owner(store: Path, home: Path) -> None:
    process = start(store, home)
    both = sharing(store, checkpoints(store))
    owners = psutil.Process(process.pid).children(recursive=True)
    for owner in [psutil.Process(process.pid), *owners]:
        if owner not in both:
            owner.kill()
    process.communicate(timeout=90)
    assert_gone(both)


EVALUATED = ("evaluation.n=16", 'evaluation.samples={"test": 96}', "evaluation.max_tokens=300",
             "resources.shard_questions=1")  # fmt: skip
SHARDS = 6 * 6 + 6


def test_one_killed_in_a_shard_ends_all_and_the_next_attempt_goes_on(
    store: Path, pool: ThreadPoolExecutor
) -> None:
    forget(store, EVALUATION)
    [spec] = specs(store, EVALUATION, *EVALUATED, TWO)
    lost: Future[Manifest | None] = pool.submit(run, spec)
    deadline = time.monotonic() + 150
    while len(shards(store, spec.key)) < 3:
        assert time.monotonic() < deadline and not lost.done()
        time.sleep(0.05)
    one, other = running_shares()
    one.kill()
    with pytest.raises(ChildFailed):
        lost.result(90)
    assert_gone([one, other])
    before = shards(store, spec.key)
    assert 3 <= len(before) < SHARDS, "in the middle"
    shares: list[float] = []
    made = run(spec, shares)
    assert made
    interrupted = tables(store, made)
    assert shares and min(shares) >= len(before) / SHARDS, "these were not computed again"
    Store(str(store)).remove(made.ref)
    whole = run(specs(store, EVALUATION, *EVALUATED)[0])
    assert whole and tables(store, whole) == interrupted


# ---------------------------------------------------------------- machines
def test_a_lost_machine_ends_the_node_and_the_next_attempt_goes_on(
    pool: ThreadPoolExecutor, store: Path
) -> None:
    machines = Machines(pool, specs(store, "teacher-sft@0", MACHINES, *LONG))
    runs = machines.start(0), machines.start(1)
    shares = sharing(store, checkpoints(store))
    [of_the_other] = [one for one in shares if one.environ()["RANK"] == "1"]
    of_the_other.kill()
    for lost in runs:
        with pytest.raises(ChildFailed):
            lost.result(90)
    assert_gone(shares)

    again = Machines(pool, specs(store, "teacher-sft@0", MACHINES, *LONG))
    runs = again.start(0), again.start(1)
    sharing(store, checkpoints(store))
    for children in again.children:
        children.stop()
    for one in runs:
        with pytest.raises(Stopped):
            one.result(90)


def test_a_machine_that_waits_for_the_first_receives_the_stop_request(
    store: Path, pool: ThreadPoolExecutor
) -> None:
    machines = Machines(pool, specs(store, "teacher-sft@0", MACHINES, *LONG))
    waiting = machines.start(1)
    time.sleep(8)
    assert not waiting.done()
    machines.children[1].stop()
    with pytest.raises(Stopped):
        waiting.result(40)
