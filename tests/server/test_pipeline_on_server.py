"""`rlt/full-pipeline` on a server: pools, pages, logs; what is there is not computed again."""

import re
from pathlib import Path

import pytest
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact, FlowRun

from rlt_core.experiments import targets
from rlt_core.graph import upstream
from rlt_core.overrides import load_config
from rlt_core.stages import STAGES
from rlt_core.store import Store
from tests.server.conftest import LACKING, Server


def artifacts_of(server: Server, run: FlowRun) -> list[Artifact]:
    """The artifacts on the page of a run."""
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    with server.client() as client:
        response = client._client.post(
            "/artifacts/filter",
            json={"artifacts": wanted.model_dump(mode="json", exclude_none=True), "limit": 200},
        )
    return [Artifact.model_validate(one) for one in response.json()]


def test_it_ends_completed_with_the_planned_keys(server: Server, finished: FlowRun) -> None:
    assert finished.state and finished.state.name == "Completed", server.logs()
    planned = {node.key for node in upstream(targets("full-pipeline", load_config("smoke")))}
    assert planned <= {manifest.ref.key for manifest in server.open_store().manifests()}


def ran_in_their_pools(server: Server, run: FlowRun) -> set[str]:
    """The stages of the children, each completed in its pool."""
    with server.client() as client:
        deployments = {one.id: one.name for one in client.read_deployments(limit=50)}
    children = {deployments[child.deployment_id]: child for child in server.children(run.id)}
    for stage, child in children.items():
        assert child.state and child.state.is_completed()
        assert child.work_pool_name == STAGES[stage].pool
    return set(children)


def test_every_stage_ran_in_its_pool_and_small_nodes_travelled_together(
    server: Server, finished: FlowRun
) -> None:
    ran = ran_in_their_pools(server, finished)
    assert ran == {re.split(r"[\[@]", node)[0] for node in LACKING}
    assert {STAGES[stage].pool for stage in ran} == {"cpu", "gpu"}
    assert len(server.children(finished.id)) == len(ran) < len(LACKING)


@pytest.mark.slow
def test_a_pipeline_from_nothing(server: Server, tmp_path: Path) -> None:
    """The run above without a store to begin with: every stage is sent to its pool."""
    store, config = str(tmp_path / "store"), load_config("smoke")
    run = server.finish(server.start("full-pipeline", profile="smoke", store=store))
    assert run.state and run.state.name == "Completed", server.logs()
    planned = upstream(targets("full-pipeline", config))
    assert ran_in_their_pools(server, run) == {node.stage.name for node in planned}
    assert {node.key for node in planned} == {one.ref.key for one in Store(store).manifests()}
    assert len(server.children(run.id)) < len(planned)


def test_independent_nodes_are_sent_side_by_side(server: Server, finished: FlowRun) -> None:
    runs = server.children(finished.id)
    at_once = [
        sum(one.created <= run.created < one.end_time for one in runs)  # type: ignore[operator]
        for run in runs
    ]
    assert max(at_once) >= 2


def test_the_page_of_the_parent_shows_plan_progress_tables_and_report(
    server: Server, finished: FlowRun
) -> None:
    shown = {artifact.key: artifact for artifact in artifacts_of(server, finished)}
    place = "smoke-full-pipeline"
    assert {
        f"{place}-{one}" for one in ("plan", "report", "scores", "ranks-figure")
    } <= shown.keys()
    assert "teacher-grpo@0" in str(shown[f"{place}-plan"].data)
    of_the_run = {key for key, artifact in shown.items() if not artifact.task_run_id}
    assert of_the_run == {f"{place}-plan", f"{place}-report", None}, "what a page shows first"
    assert "](data:image/svg+xml;base64," in str(shown[f"{place}-report"].data)
    bars = [one for one in shown.values() if one.type == "progress"]
    assert [float(str(bar.data)) for bar in bars] == [100.0]


def test_the_page_of_a_child_shows_key_metrics_and_the_lines_of_its_process(
    server: Server, finished: FlowRun
) -> None:
    [child] = [run for run in server.children(finished.id) if run.name == "teacher-grpo@0"]
    shown = artifacts_of(server, child)
    [node] = targets("teacher-grpo", load_config("smoke"))
    manifest = server.open_store().manifest("model", node.key)
    assert manifest
    assert manifest.flow_run_id == str(child.id)
    [table] = [one for one in shown if one.type == "table"]
    assert table.key == "smoke-full-pipeline-node-teacher-grpo-0"
    assert manifest.ref.key in str(table.data)
    assert "reward_last" in str(table.data)
    assert [one.type for one in shown].count("progress") == 1
    line = f"teacher-grpo@0 | {manifest.ref.key}: attempt {manifest.attempt} on cpu"
    assert line in server.log_of(child.id)


def test_tasks_have_their_names_before_they_start(server: Server, finished: FlowRun) -> None:
    wanted = {
        "filter": {
            "occurred": {"since": str(finished.created)},
            "event": {"name": ["prefect.task-run.Pending"]},
            "related": {"id": [f"prefect.flow-run.{finished.id}"]},
        },
        "limit": 50,
    }
    with server.client() as client:
        events = client._client.post("/events/filter", json=wanted).json()["events"]
    names = [event["resource"]["prefect.resource.name"] for event in events]
    assert any(name.startswith("teacher-grpo@0") for name in names), names
    assert not any(name.startswith("node-") for name in names)


def test_a_second_run_is_cached(server: Server, finished: FlowRun) -> None:
    again = server.finish(server.start("full-pipeline", profile="smoke"))
    assert again.state and again.state.name == "Cached"
    assert server.children(again.id) == []


def test_a_mistake_is_one_line(server: Server) -> None:
    run = server.finish(server.start("full-pipeline", profile="smoke", set=["data.n_trian=3"]))
    assert run.state and run.state.is_failed()
    assert "data.n_trian" in str(run.state.message)
    assert "Traceback" not in server.log_of(run.id)
