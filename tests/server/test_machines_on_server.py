"""A node that several runs of a pool share, and nodes that several pipelines share."""

import pytest
from prefect.client.schemas.actions import WorkPoolUpdate

from rlt_core.experiments import targets
from rlt_core.graph import upstream
from rlt_core.overrides import load_config
from rlt_core.store import Lease
from tests.server.conftest import Server
from tests.server.test_faults import computing, nodes

pytestmark = pytest.mark.slow

SHARED = [
    "teacher_sft.steps=2",
    "resources.stages.teacher-sft.machines=2",
    "resources.stages.trace-generation.machines=2",
    "resources.stages.trace-generation.shard_questions=2",
]


def test_steps_and_shards_are_shared_by_two_runs(server: Server) -> None:
    run = server.finish(server.start("compare-traces", profile="smoke", set=SHARED))
    assert run.state and run.state.is_completed(), server.logs()
    children = {child.name: child.id for child in server.children(run.id)}

    def ends(node: str) -> list[str]:
        names = [f"{node} machine {number} of 2" for number in (1, 2)]
        states = [server.finish(children[name], 60).state for name in names]
        return [state.type.value for state in states if state]

    assert ends("teacher-sft@0") == ["COMPLETED", "COMPLETED"]
    first, second = ends("trace-generation[rlt]@0")
    assert first == "COMPLETED"
    assert second in ("COMPLETED", "CANCELLED"), "it may have come too late to help"
    nodes = upstream(targets("compare-traces", load_config("smoke", SHARED)))
    store = server.open_store()
    assert set(store.manifests_of(node.ref for node in nodes)) == {node.key for node in nodes}
    assert Lease.read_all(store.files) == ({}, {})


def test_a_machine_that_cannot_do_its_part_ends_the_node(server: Server) -> None:
    cannot = [*SHARED, "teacher_sft.batch_size=5"]
    run = server.finish(server.start("compare-traces", profile="smoke", set=cannot))
    assert run.state and run.state.is_failed(), server.logs()
    assert "a batch of 5 cannot be shared by 2 processes" in str(run.state.message)
    assert not any(child.state and not child.state.is_final() for child in server.children(run.id))


def test_a_pool_too_small_for_the_machines_of_a_training_is_told_and_nothing_waits(
    server: Server,
) -> None:
    new = [*SHARED, "teacher_sft.steps=13"]
    with server.client() as client:
        client.update_work_pool("gpu", WorkPoolUpdate(concurrency_limit=1))
        try:
            run = server.finish(server.start("compare-traces", profile="smoke", set=new))
        finally:
            client.update_work_pool("gpu", WorkPoolUpdate(concurrency_limit=None))
    assert run.state and run.state.is_failed(), server.logs()
    assert "pool gpu takes no more than 1 at a time" in str(run.state.message)
    assert "resources.stages.teacher-sft.machines" in str(run.state.message)


def test_two_pipelines_share_nodes_and_the_queue_high_goes_through(server: Server) -> None:
    shared = ["base_model.steps=1000", "base_model.seed=77"]
    first = server.start("compare-traces", profile="smoke", set=shared)
    shared_node = nodes("compare-traces", shared)["base-model"]
    child = computing(server, first, shared_node)
    with server.client() as client:
        found = client.read_deployment_by_name("rlt/compare-traces")
        second = client.create_flow_run_from_deployment(
            found.id,
            parameters={"profile": "smoke", "set": [*shared, "teacher_sft.steps=1"]},
            work_queue_name="high",
        ).id
    for run in (server.finish(second), server.finish(first)):
        assert run.state and run.state.is_completed(), server.logs()
    ran = server.children(second)
    assert ran and {one.work_queue_name for one in ran} == {"high"}
    waiting = next(one for one in ran if one.name == "base-model")
    manifest = server.open_store().manifest("model", shared_node.key)
    assert manifest and waiting.start_time, "the first pipeline's model is waited for"
    assert manifest.started_at < waiting.start_time < manifest.finished_at
    assert server.run(child.id).work_queue_name == "default"
