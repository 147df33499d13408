"""`rlt setup-server` on a server that runs elsewhere, and what its Kubernetes pools would start."""

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from flows.server.setup import HERE, JOB_START_S, POOLS
from tests.server.conftest import Server, new_server

KUBERNETES = "1.37"


def job(server: Server, run: FlowRun, pool: str, **values: Any) -> dict[str, Any]:
    """The Job that Prefect's worker would create for a run, by the template on the server."""
    name = f"kubernetes-{pool}"
    template = json.loads((HERE / "pools" / f"{pool}-pool.json").read_text())

    async def made() -> KubernetesWorkerJobConfiguration:
        with server.settings():
            async with get_client() as client:
                await client.create_work_pool(
                    WorkPoolCreate(name=name, type="kubernetes", base_job_template=template)
                )
                try:
                    kept = await client.read_work_pool(name)
                    found = await KubernetesWorkerJobConfiguration.from_template_and_values(
                        kept.base_job_template, values, client=client
                    )
                    found.prepare_for_flow_run(run)
                    return found
                finally:
                    await client.delete_work_pool(name)

    configuration = run_coro_as_sync(made())
    assert configuration is not None
    return dict(configuration.job_manifest)


@pytest.mark.parametrize("pool", POOLS)
def test_the_pools_jobs_are_valid(server: Server, finished: FlowRun, pool: str) -> None:
    made = job(server, finished, pool)
    assert "{{" not in json.dumps(made), "a placeholder without a value"
    kubernetes_validate.validate(made, KUBERNETES)
    pod = made["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    assert environment["PREFECT__FLOW_RUN_ID"] == str(finished.id)
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["terminationGracePeriodSeconds"] > 30, "a stage has as long to checkpoint"
    assert container["envFrom"] == [
        {"configMapRef": {"name": "rlt"}}, {"secretRef": {"name": "rlt-s3"}},
    ]  # fmt: skip
    mounted = {one["name"] for one in container["volumeMounts"]}
    assert mounted == {one["name"] for one in pod["volumes"]}
    template = json.loads((HERE / "pools" / f"{pool}-pool.json").read_text())
    waits = template["variables"]["properties"]["pod_watch_timeout_seconds"]["default"]
    assert waits < JOB_START_S, "a Job that waits for its place is not crashed"


def test_a_run_may_ask_for_gpus_and_a_kind_of_node(server: Server, finished: FlowRun) -> None:
    label = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    values = {"gpus": 8, "node_selector": label, "shared_memory": "64Gi", "secret": "other"}
    pod = job(server, finished, "gpu", **values)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert pod["nodeSelector"] == label
    (shared,) = [one for one in pod["volumes"] if one["name"] == "shared-memory"]
    assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Gi"}
    assert container["envFrom"][1] == {"secretRef": {"name": "other"}}


@pytest.mark.slow
def test_setting_up_again_changes_nothing_and_pools_of_another_type_are_refused(
    server: Server, tmp_path: Path
) -> None:
    def set_up(*arguments: str, **changes: str) -> tuple[int, str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        done = new_server(folder, **server.login | changes).rlt("setup-server", *arguments)
        return done.returncode, done.stdout + done.stderr

    with server.client() as client:
        before = {one.name: one.id for one in client.read_deployments()}
        status, output = set_up()
        assert status == 0, output
        assert "deployed  every" in output
        assert {one.name: one.id for one in client.read_deployments()} == before
        for name in ("Crash zombie flow runs", "Crash unstarted flow runs"):
            assert len(client.read_automations_by_name(name)) == 1
    status, output = set_up("--pools", "kubernetes")
    assert status == 2
    assert "pool cpu of type process, not kubernetes" in output
    assert set_up("--pools", "podman") == (
        2, "rlt: --pools podman: choose from process, kubernetes\n",
    )  # fmt: skip
    status, output = set_up(PREFECT_API_AUTH_STRING="rlt:guessed")
    assert (status, output.count("\n")) == (2, 1), output
    assert "refuses the login (401); set PREFECT_API_AUTH_STRING" in output
    status, output = set_up(PREFECT_API_URL="http://127.0.0.1:1/api")
    assert status == 2 and "127.0.0.1:1" in output and "Traceback" not in output
    status, output = set_up(PREFECT_API_URL="")
    assert status == 2 and "PREFECT_API_URL is not set" in output
