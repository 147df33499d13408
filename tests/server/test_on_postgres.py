"""`rlt up` keeps Prefect's state in PostgreSQL where it finds one, else in SQLite."""

import os
import subprocess
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings

from flows.server import postgres
from flows.server.processes import Processes
from tests.server import conftest
from tests.server.conftest import new_server

AS_A_USER = ["unshare", "-U", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []


def test_sqlite_is_used_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> str:
        settings, which = postgres.database(Processes(tmp_path))
        assert not settings and not list(tmp_path.glob("postgres*"))
        return which

    if os.geteuid() == 0 and postgres.binaries():
        assert said() == "SQLite (PostgreSQL refuses to run as root)"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(postgres, "binaries", lambda: tmp_path / "broken")
    assert "No such file" in said()
    monkeypatch.setattr(postgres, "binaries", lambda: None)
    assert "is not installed" in said()
    (tmp_path / "server.log").touch()
    assert said() == "SQLite (it has the history of earlier runs)"
    with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: "postgresql+asyncpg://x/y"}):
        assert said() == "the one that Prefect's settings name"


@pytest.mark.slow
@pytest.mark.skipif(postgres.binaries() is None, reason="PostgreSQL is not installed")
def test_a_pipeline_runs_on_postgres(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if subprocess.run([*AS_A_USER, "true"]).returncode:
        pytest.skip("PostgreSQL refuses to run as root")
    server, folder = new_server(tmp_path), tmp_path / "home" / "postgres"
    del server.environment[postgres.URL]

    def query(sql: str) -> list[str]:
        psql = [str((postgres.binaries() or Path()) / "psql"), "-h", str(folder), "-U", "prefect"]
        done = subprocess.run([*psql, "postgres", "-Atc", sql], capture_output=True, text=True)
        return done.stdout.splitlines()

    monkeypatch.setattr(conftest, "RLT", [*AS_A_USER, *conftest.RLT])
    try:
        assert f"database  PostgreSQL in {folder}" in server.up()
        run = server.finish(server.start("full-pipeline", profile="smoke"))
        assert run.state and run.state.name == "Completed", server.logs()
        again = server.finish(server.start("full-pipeline", profile="smoke"))
        assert again.state and again.state.name == "Cached"
        assert "started" not in server.up()
        found = query(f"select state_type, state_name from flow_run where id = '{run.id}'")
        assert found == ["COMPLETED|Completed"]
        assert query("select name from work_pool order by name") == ["cpu", "gpu"]
        assert query("select distinct name from work_queue order by 1") == ["default", "high"]
        automations = query("select name from automation order by name")
        assert automations == ["Crash unstarted flow runs", "Crash zombie flow runs"]
        assert folder.stat().st_mode & 0o777 == 0o700, "no other user reaches the socket"
    finally:
        monkeypatch.undo()
        server.rlt("down")
    assert server.processes() == []
    assert not list((tmp_path / "prefect").glob("*.db"))
    assert "database system is shut down" in (server.home / "postgres.log").read_text()
