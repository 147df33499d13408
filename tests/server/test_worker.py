"""`rlt worker`: asked to end, it takes no more runs, and what it runs checkpoints first."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from flows.server.processes import MARK, Processes, free_port
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


@contextmanager
def ours(server: Server, pool: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`rlt worker` in the place of the pool's worker; its log is `{pool}.log`."""
    Processes(server.home).stop([f"worker-{pool}"], 30)
    environment = {
        **server.environment,
        **server.login,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
        "PREFECT_WORKER_WEBSERVER_PORT": str(free_port()),
        "RLT_STORE": str(server.store),
        MARK: str(server.home),
    }
    health = f"http://127.0.0.1:{environment['PREFECT_WORKER_WEBSERVER_PORT']}/health"
    command = [*RLT, "worker", "--pool", pool, "--with-healthcheck", *options]
    with (server.home / f"{pool}.log").open("wb") as log:
        worker = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: healthy(health), 120)
        yield worker
    finally:
        worker.kill()
        worker.wait()


def healthy(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_workers_that_end_let_what_they_run_checkpoint_and_leave_the_rest(
    own_server: Server,  # noqa: F811
) -> None:
    server = own_server
    changes = [[line.format(seed=seed) for line in LONG] for seed in (1, 2)]
    with ours(server, "cpu") as pipelines, ours(server, "gpu", "--limit", "1") as worker:
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
        assert f"stopped after step {last} of 1000" in (server.home / "gpu.log").read_text()
        untouched = server.run(waiting.id).state
        assert untouched and untouched.is_scheduled()
        pipelines.send_signal(signal.SIGTERM)
        assert pipelines.wait(60) == 0
    for run in (first, second):
        state = server.run(run).state
        assert state and state.is_final(), "no pipeline stays Running for want of its process"
    left = server.run(waiting.id).state
    assert left and left.is_cancelled(), "nobody waits for it any more"
