"""Processes that share a node's work, and their owner: none is left, the cause is reported."""

import subprocess
import sys
from multiprocessing import connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from rlt_core.progress import Progress
from rlt_core.stages import STAGES
from tasks import distributed

WORKER = """
import subprocess, sys, threading
from multiprocessing import connection
from tasks import distributed

print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
distributed._listen(connection.Client(sys.argv[1], "AF_UNIX"), threading.Event())
"""


def test_a_process_without_its_owner_ends_with_all_that_it_started(tmp_path: Path) -> None:
    """An engine of vLLM would go on, and keep the memory of its GPU."""
    address = str(tmp_path / "owner")
    with connection.Listener(address, "AF_UNIX") as listener:
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, address],
            stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        owner = listener.accept()
        assert worker.stdout
        engine = psutil.Process(int(worker.stdout.readline()))
        owner.close()
        assert worker.wait(30) != 0
    _, alive = psutil.wait_procs([engine], timeout=10)
    assert not alive


def raised(tmp_path: Path, *outcomes: tuple[str, str] | None) -> BaseException:
    """The owner's error where each process ends with such an outcome, or without one (None)."""
    address = str(tmp_path / "owner")
    with connection.Listener(address, "AF_UNIX") as listener:
        owner = distributed._Owner(listener, Progress())
        for pipe, outcome in [(connection.Client(address, "AF_UNIX"), one) for one in outcomes]:
            if outcome:
                pipe.send(outcome)
            pipe.close()
        agent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
        owner.follow(agent)
    with pytest.raises(RuntimeError) as found:
        owner.result(agent.wait())
    return found.value


LOST = ("cut_off", "Connection closed by peer")


@pytest.mark.parametrize(
    ("outcomes", "said", "died"),
    [
        ([None, LOST], "died", True),  # gloo fails in the others when one was killed
        ([LOST, None], "died", True),
        ([LOST], "closed by peer", False),  # a process of another machine was lost
        # NCCL ends the others when one of them has run out of memory.
        ([None, ("failed", "CUDA out of memory")], "CUDA out of memory", False),
    ],
)
def test_the_cause_is_raised_rather_than_its_consequences(
    tmp_path: Path, outcomes: list[tuple[str, str] | None], said: str, died: bool
) -> None:
    error = raised(tmp_path, *outcomes)
    assert said in str(error) and isinstance(error, distributed.ProcessDied) == died


@pytest.mark.slow
def test_torchrun_of_one_machine_reads_pickles_from_no_port(tmp_path: Path) -> None:
    """What its agents pickle for each other is in a file of the private folder."""
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys; print(b'torch.rendezvous' in pathlib.Path(sys.argv[1]).read_bytes())"
    )
    ctx: Any = SimpleNamespace(stage=STAGES["teacher-sft"], machines=1)
    options = distributed._rendezvous(ctx, str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, "--nproc-per-node=2",
         str(script), str(tmp_path / "rendezvous")], capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.count("True") == 2, done.stdout + done.stderr
