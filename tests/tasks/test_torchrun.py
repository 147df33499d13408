"""Processes that share a node's work and their owner: nothing is left, and the cause is told."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from multiprocessing import connection
from pathlib import Path

import psutil
import pytest

from rlt_core.control import Control
from tasks import torchrun

WORKER = """
import subprocess, sys, threading
from multiprocessing import connection
from tasks import torchrun

print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
torchrun._listen(connection.Client(sys.argv[1], "AF_UNIX"), threading.Event())
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


@pytest.mark.parametrize("first", ["failed", "died", "died at once"])
def test_what_went_wrong_first_is_told(tmp_path: Path, first: str) -> None:
    """NCCL ends the others when one of them has run out of memory; gloo fails in the others when
    one of them was killed."""
    address = str(tmp_path / "owner")
    with connection.Listener(address, "AF_UNIX") as listener:
        owner = torchrun._Owner(listener, Control())
        survivor, killed = (connection.Client(address, "AF_UNIX") for _ in range(2))
        if first == "died at once":  # the owner hears of both together
            while len(owner._open) < 2:
                time.sleep(0.01)
            survivor.send(("failed", "closed by peer"))
            survivor.close()
            killed.close()
        agent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3)"])
        followed = threading.Thread(target=owner.follow, args=(agent,))
        followed.start()
        if first == "failed":
            survivor.send(("failed", "CUDA out of memory"))
            survivor.close()
            time.sleep(1)
            killed.close()
        elif first == "died":
            killed.close()
            time.sleep(1)
            survivor.send(("failed", "closed by peer"))
            survivor.close()
        followed.join()
    expected = "CUDA out of memory" if first == "failed" else "the work died"
    with pytest.raises(RuntimeError, match=expected):
        owner.result(agent.wait())
