"""Every target has its deployment, and every deployment its flow."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from prefect.exceptions import MissingFlowError
from prefect.flows import load_flow_from_entrypoint

from rlt_core.experiments import ALL, EXPERIMENTS
from rlt_core.stages import STAGES

FILE = Path(__file__).parents[2] / "prefect.yaml"
DECLARED = yaml.safe_load(FILE.read_text())["deployments"]
DEPLOYMENTS = {one["name"]: one["entrypoint"] for one in DECLARED}


def test_every_target_has_a_deployment() -> None:
    assert DEPLOYMENTS.keys() == {*EXPERIMENTS, ALL, *STAGES}
    pools = {one["name"]: one["work_pool"]["name"] for one in DECLARED}
    assert pools == dict.fromkeys(DEPLOYMENTS, "cpu") | {n: s.pool for n, s in STAGES.items()}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_entrypoint_is_the_flow_of_its_target(name: str) -> None:
    flow = load_flow_from_entrypoint(DEPLOYMENTS[name])
    assert flow.name == "rlt"
    assert flow.fn.__name__ == name.replace("-", "_")
    assert "store" in flow.parameters.properties
    assert ("nodes" in flow.parameters.properties) == (name in STAGES)


def test_an_unknown_entrypoint_is_refused() -> None:
    with pytest.raises(MissingFlowError, match="teacher_dpo"):
        load_flow_from_entrypoint("flows.deployments.teacher_dpo")
