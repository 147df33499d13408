"""Processes that share a node's work and their owner: nothing is left, and the cause is told."""

from __future__ import annotations

import subprocess
import sys
from multiprocessing import connection
from pathlib import Path

import psutil
import pytest

from rlt_core.progress import Progress
from tasks import distributed

WORKER = """
import subprocess, sys, threading
from multiprocessing import connection
from tasks import distributed

print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
distributed._listen(connection.Client(sys.argv[1], "AF_UNIX"), threading.Event())
"""


def test_whoever_loses_its_owner_ends_with_all_that_it_started(tmp_path: Path) -> None:
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


def told(tmp_path: Path, *words: tuple[str, str] | None) -> BaseException:
    """What is raised where each of the processes ends with such a word, or without one (None)."""
    address = str(tmp_path / "owner")
    with connection.Listener(address, "AF_UNIX") as listener:
        owner = distributed._Owner(listener, Progress())
        for pipe, word in [(connection.Client(address, "AF_UNIX"), word) for word in words]:
            if word:
                pipe.send(word)
            pipe.close()
        agent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(2)"])
        owner.follow(agent)
    with pytest.raises(RuntimeError) as raised:
        owner.result(agent.wait())
    return raised.value


@pytest.mark.parametrize("killed_first", [True, False])
def test_who_died_is_told_rather_than_who_lost_it(tmp_path: Path, killed_first: bool) -> None:
    """Gloo fails in the others when one of them was killed."""
    words = [None, ("cut_off", "Connection closed by peer")]
    assert isinstance(told(tmp_path, *words[:: 1 if killed_first else -1]), distributed.ProcessDied)


def test_who_lost_another_machines_process_says_so(tmp_path: Path) -> None:
    error = told(tmp_path, ("cut_off", "Connection closed by peer"))
    assert "closed by peer" in str(error) and not isinstance(error, distributed.ProcessDied)


def test_what_failed_is_told_rather_than_who_died_of_it(tmp_path: Path) -> None:
    """NCCL ends the others when one of them has run out of memory."""
    error = told(tmp_path, None, ("failed", "CUDA out of memory"))
    assert "CUDA out of memory" in str(error) and not isinstance(error, distributed.ProcessDied)
