"""A real Prefect server with its pools and workers, as `rlt up` starts them."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.server.postgres import URL
from flows.server.processes import MARK, free_port
from rlt_core.store import Store

RLT = [sys.executable, "-m", "flows.cli.app"]
ROOT = Path(__file__).parents[2]


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One server for most: its tests go to one worker, those with servers of their own to one."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            shared = "server" in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.xdist_group("server" if shared else "own-servers"))


@dataclass
class Server:
    """A running `rlt up`."""

    home: Path
    store: Path
    port: int
    environment: dict[str, str]

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def login(self) -> dict[str, str]:
        """Prefect's settings of the user who started it."""
        found = (self.home / "api-login").read_text()
        return {"PREFECT_API_URL": self.api, "PREFECT_API_AUTH_STRING": found}

    def rlt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of ours against it."""
        return subprocess.run(
            [*RLT, *arguments], capture_output=True, text=True, env=self.environment, cwd=self.home
        )

    def up(self, *arguments: str) -> str:
        """Run `rlt up`; return its output."""
        port, store = str(self.port), str(self.store)
        done = self.rlt("up", "--port", port, "--store", store, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done.stdout

    def logs(self) -> str:
        """The ends of the logs of its processes."""
        return "\n".join(
            f"== {log.name}\n{log.read_text()[-3000:]}" for log in self.home.glob("*.log")
        )

    def client(self) -> SyncPrefectClient:
        with self.settings():
            return get_client(sync_client=True)

    def settings(self) -> AbstractContextManager[object]:
        """Prefect in this process uses it."""
        login = self.login["PREFECT_API_AUTH_STRING"]
        return temporary_settings({PREFECT_API_URL: self.api, PREFECT_API_AUTH_STRING: login})

    def start(self, deployment: str, **parameters: Any) -> UUID:
        """A run of `rlt/<deployment>`."""
        with self.client() as client:
            found = client.read_deployment_by_name(f"rlt/{deployment}")
            return client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def run(self, id_: UUID) -> FlowRun:
        """The run as it is now."""
        with self.client() as client:
            return client.read_flow_run(id_)

    def finish(self, id_: UUID, timeout_s: float = 900) -> FlowRun:
        """The run once its state is final."""
        deadline = time.monotonic() + timeout_s
        with self.client() as client:
            while time.monotonic() < deadline:
                run = client.read_flow_run(id_)
                if run.state and run.state.is_final():
                    return run
                time.sleep(0.5)
        raise AssertionError(f"still {run.state}\n{self.logs()}")

    def children(self, id_: UUID) -> list[FlowRun]:
        """Runs that a parent has sent to the pools."""
        parent = FlowRunFilterParentFlowRunId(any_=[id_])
        with self.client() as client:
            return client.read_flow_runs(
                flow_run_filter=FlowRunFilter(parent_flow_run_id=parent), limit=200
            )

    def log_of(self, id_: UUID) -> str:
        """The log on the page of a run."""
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[id_]))
        with self.client() as client:
            return "\n".join(log.message for log in client.read_logs(wanted, limit=200))

    def processes(self) -> list[psutil.Process]:
        """All that was started from here and still runs."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get(MARK) == str(self.home)
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def open_store(self) -> Store:
        return Store(str(self.store))


def act_sooner(client: SyncPrefectClient, automation: str, times: int) -> None:
    """Let an automation wait a fraction of its time."""
    [watch] = client.read_automations_by_name(automation)
    sooner = AutomationCore.model_validate(watch.model_dump(exclude={"id"}))
    sooner.trigger.within = sooner.trigger.within / times
    client.delete_automation(watch.id)
    client.create_automation(sooner)


def new_server(folder: Path, **environment: str) -> Server:
    """A server that is not up yet."""
    home = folder / "home"
    home.mkdir(parents=True)
    own = {
        "RLT_HOME": str(home),
        "PREFECT_HOME": str(folder / "prefect"),
        URL: f"sqlite+aiosqlite:///{folder / 'prefect' / 'prefect.db'}",  # with PostgreSQL, too
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
    }
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "RLT_", "PREFECT_API"))
    }
    return Server(home, folder / "store", free_port(), {**kept, **own, **environment})


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for the session, up; its store is empty at first."""
    made = new_server(tmp_path_factory.mktemp("server"))
    try:
        made.up()
        yield made
    finally:
        made.rlt("down")


@pytest.fixture(scope="session")
def up_again(server: Server) -> str:
    """What `rlt up` prints while everything is up."""
    return server.up()


LACKING = (
    "teacher-grpo@0", "evaluation[dataset]@0", "evaluation[rlt]@0", "rank-statistics[reward]",
    "report",
)  # fmt: skip


@pytest.fixture(scope="session")
def finished(server: Server, smoke_store: Path) -> FlowRun:
    """A finished run of rlt/full-pipeline with profile smoke, on a store that lacked some of it:
    two nodes of one stage, independent ones, and some for each pool."""
    shutil.copytree(smoke_store, server.store, dirs_exist_ok=True)
    store = server.open_store()
    for name in LACKING:
        store.remove(store.find(f"smoke/{name}").ref)
    return server.finish(server.start("full-pipeline", profile="smoke"))
