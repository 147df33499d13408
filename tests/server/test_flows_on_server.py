"""Flows of this process on a server: what their runs are called, how they end, what they leave."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.exceptions import TerminationSignal
from prefect.runtime import task_run

from flows import deployments
from flows.cli.app import app
from flows.cli.watch import ENDED
from flows.deployments import as_task, experiment_flow, state_of
from flows.executors import Outcome
from flows.pipeline import run_batches
from flows.planning import Plan
from flows.prefect_artifacts import RunPage
from flows.schedule import by_stage, title_of
from rlt_core.store import Store
from tests.flows.conftest import invoke
from tests.server.conftest import Server


def test_a_store_that_cannot_be_written_is_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("where the store keeps configs")
    with server.settings():
        flow = experiment_flow("full-pipeline")
        state = flow(profile="smoke", store=str(tmp_path), return_state=True)
    assert state.is_failed() and "cannot be written" in str(state.message)
    assert "\n" not in str(state.message)


class Stage:
    """An executor whose nodes see the run that they belong to."""

    def execute(self, specs: Any) -> list[Outcome]:
        return [Outcome("done", str(task_run.name)) for _ in specs]

    def stop(self) -> None:
        """Nothing runs."""


def test_a_batch_is_a_task_of_its_run(server: Server, tmp_path: Path) -> None:
    specs = Plan.of("full-pipeline", "smoke", store=str(tmp_path)).specs()
    found: dict[str, Outcome] = {}

    @flow(name="rlt")
    def run() -> Any:
        found.update(run_batches(by_stage(specs), Stage(), RunPage(1, 0), None, as_task))
        return state_of({"a": Outcome("done"), "b": Outcome("failed", "why")})

    with server.settings():
        state = run(return_state=True)
    assert state.is_failed() and state.message == "b: why; 1 of 2 nodes are missing: b"
    assert {key: one.message for key, one in found.items()} == {
        spec.key: title_of(batch) for batch in by_stage(specs) for spec in batch
    }


def test_a_stopped_run_has_a_report_of_what_exists(
    server: Server, smoke_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here one that is cancelled on a server while its nodes run."""
    store = Path(shutil.copytree(smoke_store, tmp_path / "store"))
    there = Store(str(store))
    lost = ("report", "rank-statistics[reward]", "evaluation[rlt+rl]@0", "student-grpo[rlt]@0")
    for name in lost:
        there.remove(there.find(f"smoke/{name}").ref)
    named = there.refs()["smoke/base-model"]
    there.files.remove("refs/smoke/base-model.json")

    def cancelled(*_: object) -> None:
        assert any(one["name"] == "smoke/full-pipeline" for one in there.working().values())
        raise TerminationSignal(signal.SIGTERM)

    monkeypatch.setattr(deployments, "run_plan", cancelled)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # Prefect sends it again
    with server.settings(), pytest.raises(TerminationSignal):
        deployments.experiment_flow("full-pipeline")(profile="smoke", store=str(store))
    signal.signal(signal.SIGTERM, before)
    ended = sorted(there.files.names(ENDED))[-1]
    assert there.files.read(f"{ENDED}/{ended}") == b"130", "rlt status --watch says how it ended"
    assert there.refs()["smoke/base-model"] == named, "what is committed has its name"
    shown = invoke(app, "report", "--store", store).stdout
    assert "full-pipeline, unfinished: 21 of 24 nodes" in shown
    assert "countdown" in shown and "rlt+rl" not in shown
    assert "of the traces have no end" in shown, "alarms are in the terminal"
    page = Path(invoke(app, "report", "--path", "--store", store).stdout.strip())
    assert page.with_name("report.html").is_file() and page.with_name("scores.csv").is_file()
