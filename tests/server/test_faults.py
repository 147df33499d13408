"""Faults on a server: failures, cancellation, killed processes, workers and machines."""

import signal
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import psutil
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling, Scheduled
from typer.testing import CliRunner

from flows.cli.app import app
from rlt_core.errors import UserError
from rlt_core.experiments import targets
from rlt_core.graph import Node, upstream
from rlt_core.overrides import load_config
from tests.server.conftest import Server, act_sooner, new_server

Found = TypeVar("Found")
LONG = ["base_model.steps=1000", "base_model.seed={seed}"]
"""A base model that takes about twenty seconds."""
SHORT = "compare-traces"
"""The experiment of the fewest nodes; they start with the base model."""


def wait_for(what: Callable[[], Found], timeout_s: float) -> Found:
    """Poll until it is there."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, f"not there after {timeout_s:.0f} s"
        time.sleep(0.2)
    return found


def retry(server: Server, run: UUID) -> None:
    """As the button of the UI does it."""
    with server.client() as client:
        client.set_flow_run_state(run, Scheduled(name="AwaitingRetry"), force=True)


def retried(server: Server, run: FlowRun, timeout_s: float = 900) -> FlowRun:
    """The run after a retry."""
    retry(server, run.id)
    wait_for(lambda: server.run(run.id).run_count > run.run_count, 60)
    return server.finish(run.id, timeout_s)


def computing(server: Server, run: UUID, node: Node, besides: Collection[UUID] = ()) -> FlowRun:
    """The child run of a node, other than those, once its process has left a checkpoint."""

    def child() -> FlowRun | None:
        found = [
            one for one in server.children(run) if one.name == node.name and one.id not in besides
        ]
        return found[0] if found and found[0].state and found[0].state.is_running() else None

    found = wait_for(child, 120)
    wait_for(lambda: checkpoints(server, node), 60)
    return found


def checkpoints(server: Server, node: Node) -> list[Path]:
    return list((server.store / "work" / node.key).glob("checkpoints/*/manifest.json"))


def nodes(target: str, changes: list[str]) -> dict[str, Node]:
    """The graph of a run, by name."""
    found = upstream(targets(target, load_config("smoke", changes)))
    return {node.name: node for node in found}


def process_of(server: Server, run: UUID) -> psutil.Process:
    """The process of a flow run."""
    for process in server.processes():
        try:
            if process.environ().get("PREFECT__FLOW_RUN_ID") == str(run):
                return process
        except psutil.Error:
            continue
    raise AssertionError("no process")


GRPO = "student-grpo[rlt]@0"


def test_a_childs_death_is_the_parents_and_a_retry_goes_on(
    server: Server, finished: FlowRun
) -> None:
    store = server.open_store()
    change = ["student_grpo.steps=40"]
    planned = nodes("full-pipeline", change)
    before = {manifest.ref.key: manifest.attempt for manifest in store.manifests()}
    id_ = server.start("full-pipeline", profile="smoke", set=change)
    child = computing(server, id_, planned[GRPO])
    process_of(server, child.id).send_signal(signal.SIGKILL)
    run = server.finish(id_, 120)
    assert run.state and run.state.is_failed()
    assert GRPO in str(run.state.message)
    assert "3 of 25 nodes are missing: " in str(run.state.message)

    run = retried(server, run)
    assert run.state and run.state.name == "Completed", run.state.message
    after = {manifest.ref.key: manifest.attempt for manifest in store.manifests()}
    assert before.items() <= after.items(), "what was there is not computed again"
    assert {node.key for node in planned.values()} <= after.keys()


@pytest.mark.slow
def test_a_childs_mistake_is_the_parents_and_a_retry_goes_on_once_it_is_fixed(
    server: Server, finished: FlowRun
) -> None:
    store = server.open_store()
    [weights] = store.intact(store.find("smoke/student-sft[rlt]@0")).rglob("*.safetensors")
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-1])
    run = server.finish(
        server.start("full-pipeline", profile="smoke", set=["student_grpo.steps=3"])
    )
    weights.write_bytes(intact)
    assert run.state and run.state.is_failed()
    assert GRPO in str(run.state.message)
    assert "is damaged" in str(run.state.message)
    run = retried(server, run)
    assert run.state and run.state.name == "Completed", run.state.message


def test_cancelling_the_parent_ends_the_whole_process_tree(
    server: Server, finished: FlowRun
) -> None:
    permanent = {process.pid for process in server.processes()}
    change = [line.format(seed=1) for line in LONG]
    base_model = nodes(SHORT, change)["base-model"]
    run = server.start(SHORT, profile="smoke", set=change)
    child = computing(server, run, base_model)
    assert len(server.processes()) > len(permanent)
    with server.client() as client:
        client.set_flow_run_state(run, Cancelling())
    wait_for(lambda: {one.pid for one in server.processes()} <= permanent, 60)
    assert server.finish(run, 30).state.is_cancelled()  # type: ignore[union-attr]
    assert server.finish(child.id, 30).state.is_cancelled()  # type: ignore[union-attr]
    assert checkpoints(server, base_model)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that a test may break, with heartbeats as often as Prefect allows."""
    made = new_server(tmp_path, PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30")
    try:
        made.up()
        yield made
    finally:
        made.rlt("down")


@pytest.mark.slow
def test_a_dead_machine_frees_its_pool_and_the_retried_parent_completes(
    own_server: Server,
) -> None:
    server = own_server
    with server.client() as client:
        act_sooner(client, "Crash zombie flow runs", 9)
    change = [line.format(seed=3) for line in LONG]
    run = server.start(SHORT, profile="smoke", set=change)
    child = computing(server, run, nodes(SHORT, change)["base-model"])
    own = process_of(server, child.id)
    for process in server.processes():
        line = " ".join(process.cmdline())
        of_the_machine = "worker-gpu" in line or "fork_server import serve" in line
        if of_the_machine or process.pid == own.pid:
            process.send_signal(signal.SIGKILL)
    assert server.run(child.id).state.is_running()  # type: ignore[union-attr]
    crashed = server.finish(child.id, 240)
    assert crashed.state and crashed.state.is_crashed()
    assert "heartbeat" in str(crashed.state.message)
    ended = server.finish(run, 60)
    assert ended.state and ended.state.is_failed()
    server.up()
    ended = retried(server, ended, 600)
    assert ended.state and ended.state.is_completed(), ended.state.message


def refused(server: Server, *arguments: str) -> str:
    """The error of an `rlt up`, in this process."""
    done = CliRunner().invoke(app, ["up", *arguments], env=server.environment)
    assert isinstance(done.exception, UserError), done.output
    return str(done.exception)


def test_up_again_is_no_mistake_and_another_up_is(
    server: Server, up_again: str, tmp_path: Path
) -> None:
    assert "is up" in up_again
    assert "started" not in up_again
    port = ("--port", str(server.port))
    assert "`rlt down` first" in refused(server, *port, "--store", str(tmp_path / "other"))
    assert "is taken" in refused(new_server(tmp_path / "beside"), *port)
    elsewhere = new_server(tmp_path / "foreign", PREFECT_API_URL="http://127.0.0.1:1/api")
    assert "PREFECT_API_URL" in refused(elsewhere)
    login = server.home / "api-login"
    kept = login.rename(tmp_path / "kept")
    said = refused(server, *port, "--store", str(server.store))
    kept.rename(login)
    assert "`rlt down` first" in said
