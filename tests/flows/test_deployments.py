"""Every experiment and every stage is deployed: its flow, on its pool, from a wheel as well."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint

from flows import deployments
from flows.server.setup import declared
from rlt_core.experiments import ALL, EXPERIMENTS
from rlt_core.stages import STAGES

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = {one["name"]: one for one in declared()["deployments"]}


def test_prefect_yaml_is_what_is_deployed() -> None:
    written = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    assert written == declared(), "python -m flows.server.setup > prefect.yaml"
    for one in written["deployments"]:
        assert len(one["description"]) > 60
        assert one["tags"]


def test_a_wheel_deploys_without_a_checkout(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout")
    packaged = {
        name
        for name in listed.stdout.splitlines()
        if name.startswith(("flows/", "tasks/", "rlt_core/"))
    }
    source, installed, empty = (tmp_path / name for name in ("source", "installed", "empty"))
    for name in (*packaged, "pyproject.toml", "README.md"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "."]
    subprocess.run(pip, cwd=source, check=True)
    (wheel,) = source.glob("*.whl")
    assert packaged <= set(ZipFile(wheel).namelist())
    ZipFile(wheel).extractall(installed)
    empty.mkdir()
    code = """if True:
        import json
        from flows.server import setup
        print(json.dumps([setup.__file__, setup.declared(), setup._template("gpu", "kubernetes")]))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=empty, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )  # fmt: skip
    file, deployments, template = json.loads(done.stdout)
    assert file.startswith(str(installed))
    assert deployments == declared()
    assert template["job_configuration"]


def test_every_target_has_a_deployment_on_its_pool() -> None:
    pools = {name: one["work_pool"]["name"] for name, one in DEPLOYMENTS.items()}
    experiments = dict.fromkeys([*EXPERIMENTS, ALL], "cpu")
    assert pools == experiments | {name: stage.pool for name, stage in STAGES.items()}


def test_a_users_own_targets_are_flows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPERIMENTS._all, "my-own", EXPERIMENTS["full-pipeline"])
    monkeypatch.setitem(STAGES._all, "my_stage", STAGES["report"])
    importlib.reload(deployments)
    for entrypoint, parameter in (("my_own", "budget_gpu_hours"), ("my_stage", "nodes")):
        flow = load_flow_from_entrypoint(f"flows.deployments.{entrypoint}")
        assert parameter in flow.parameters.properties


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_entrypoint_is_the_flow_of_its_target(name: str) -> None:
    flow = load_flow_from_entrypoint(DEPLOYMENTS[name]["entrypoint"])
    assert flow.name == "rlt"
    assert flow.fn.__name__ == name.replace("-", "_")
    assert "store" in flow.parameters.properties
    assert ("nodes" in flow.parameters.properties) == (name in STAGES)
