"""`prefect.yaml` deploys every experiment and every stage: its flow, on its pool."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint

from rlt_core.experiments import ALL, EXPERIMENTS
from rlt_core.stages import STAGES

DEPLOYMENTS = {
    one["name"]: one
    for one in yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text())[
        "deployments"
    ]
}


def test_every_target_has_a_deployment_on_its_pool() -> None:
    pools = {name: one["work_pool"]["name"] for name, one in DEPLOYMENTS.items()}
    experiments = dict.fromkeys([*EXPERIMENTS, ALL], "cpu")
    assert pools == experiments | {name: stage.pool for name, stage in STAGES.items()}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_entrypoint_is_the_flow_of_its_target(name: str) -> None:
    flow = load_flow_from_entrypoint(DEPLOYMENTS[name]["entrypoint"])
    assert flow.name == "rlt"
    assert flow.fn.__name__ == name.replace("-", "_")
    assert "store" in flow.parameters.properties
    assert ("nodes" in flow.parameters.properties) == (name in STAGES)
