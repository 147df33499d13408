"""`rlt worker`: asked to end, it takes no more runs, and what it runs checkpoints first."""

from __future__ import annotations

import signal
import subprocess

import pytest

from flows.local.processes import MARK, Processes
from tests.server.conftest import RLT, Server
from tests.server.test_faults import (  # noqa: F401  own_server is a fixture
    LONG,
    SHORT,
    checkpoints,
    computing,
    nodes,
    own_server,
    wait_for,
)


@pytest.mark.slow
def test_a_worker_that_ends_lets_its_run_checkpoint_and_leaves_the_next_one(
    own_server: Server,  # noqa: F811
) -> None:
    server = own_server
    Processes(server.home).stop(["worker-gpu"], 30)
    environment = {
        **server.environment,
        "PREFECT_API_URL": server.api,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "RLT_STORE": str(server.store),
        MARK: str(server.home),
    }
    with (server.home / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            [*RLT, "worker", "--name", "ours"], env=environment, stdout=log, stderr=log
        )
    changes = [[line.format(seed=seed) for line in LONG] for seed in (1, 2)]
    first = server.start(SHORT, profile="smoke", set=changes[0])
    child = computing(server, first, nodes(SHORT, changes[0])["base-model"])
    second = server.start(SHORT, profile="smoke", set=changes[1])
    [waiting] = wait_for(lambda: server.children(second), 120)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    ended = server.run(child.id).state
    assert ended and ended.is_crashed() and "termination signal" in str(ended.message)
    made = checkpoints(server, nodes(SHORT, changes[0])["base-model"])
    last = max(int(file.parent.name) for file in made)
    assert f"stopped after step {last} of 1000" in (server.home / "worker.log").read_text()
    untouched = server.run(waiting.id).state
    assert untouched and untouched.is_scheduled()
