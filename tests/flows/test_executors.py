"""Nodes reach an outcome whatever happens: the server answers or not, other runs share the node."""

import logging
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows import prefect_artifacts
from flows.deployments import experiment_flow
from flows.executors import Outcome
from flows.pipeline import run_here
from flows.planning import Plan
from rlt_core.store import Store
from tests.flows.conftest import Served
from tests.sample_store import commit


def test_a_server_that_does_not_answer_ends_no_computation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker computes on while its server is started again."""
    monkeypatch.setattr(prefect_artifacts, "get_run_logger", logging.getLogger)
    made = commit(Store(str(tmp_path)), "base-model", {})
    away = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(away):
        page = prefect_artifacts.NodePage()
        page.started("base-model")
        page.progress("base-model", 1, 2, {})
        page.finished("base-model", made)
    assert caplog.text.count("not shown on the page") == 4


class Broken:
    """An executor that loses its server."""

    def execute(self, *_: object) -> Any:
        raise ConnectionError("all connection attempts failed")

    def stop(self) -> None:
        """Nothing runs."""


def test_the_cause_of_an_outcome_is_told(served: Served, tmp_path: Path) -> None:
    plan = Plan.of("dataset-prep", "smoke", store=str(tmp_path))
    with temporary_settings({PREFECT_API_URL: served.environment()["PREFECT_API_URL"]}):
        outcomes = run_here(plan, Broken(), prefect_artifacts.NodePage())
    why = Outcome("failed", "ConnectionError: all connection attempts failed")
    assert outcomes == {"dataset-prep": why}


def test_a_store_that_cannot_be_written_is_one_line(served: Served, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("where the store keeps configs")
    with temporary_settings({PREFECT_API_URL: served.environment()["PREFECT_API_URL"]}):
        flow = experiment_flow("full-pipeline")
        state = flow(profile="smoke", store=str(tmp_path), return_state=True)
    assert state.is_failed() and "cannot be written" in str(state.message)
    assert "\n" not in str(state.message)
