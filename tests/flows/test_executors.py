"""Nodes reach an outcome whatever happens: the server answers or not, other runs share the node."""

import io
import logging
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows import prefect_artifacts
from flows.cli.progress import Display
from flows.cli.terminal import Console
from flows.executors import Outcome
from flows.pipeline import run_plan
from flows.planning import Plan
from rlt_core.store import Store
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


def test_the_cause_of_an_outcome_is_told(tmp_path: Path) -> None:
    plan, out = Plan.of("dataset-prep", "smoke", store=str(tmp_path)), io.StringIO()
    with Display(1, Console(file=out, width=200)) as display:
        outcomes = run_plan(plan, [plan.specs()], Broken(), display)
    why = Outcome("failed", "ConnectionError: all connection attempts failed")
    assert outcomes == {"dataset-prep": why}
    assert out.getvalue().strip() == f"failed  dataset-prep: {why.message}"
