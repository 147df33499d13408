"""Deployments, pools and queues unchanged, with PostgreSQL as Prefect's database."""

import tempfile
from pathlib import Path

import pytest

from tests.server import postgres
from tests.server.conftest import new_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(postgres.binaries() is None, reason="PostgreSQL is not installed"),
]


def test_a_pipeline_runs_on_postgres(tmp_path: Path) -> None:
    # Not below pytest's folder, which is closed to the user that PostgreSQL runs as.
    with (
        tempfile.TemporaryDirectory() as folder,
        postgres.serve(Path(folder) / "postgres") as address,
    ):
        url = f"postgresql+asyncpg://{address}"
        server = new_server(tmp_path, PREFECT_API_DATABASE_CONNECTION_URL=url)
        try:
            server.up()
            run = server.finish(server.start("full-pipeline", profile="smoke"))
            assert run.state and run.state.name == "Completed", server.logs()
            again = server.finish(server.start("full-pipeline", profile="smoke"))
            assert again.state and again.state.name == "Cached"
            assert "started" not in server.up()
        finally:
            server.rlt("down")
        assert server.processes() == []
        assert not list((tmp_path / "prefect").glob("*.db"))
        runs = f"select state_type, state_name from flow_run where id = '{run.id}'"
        assert postgres.query(address, runs) == "COMPLETED|Completed"
        pools = postgres.query(address, "select name from work_pool order by name")
        assert pools.split() == ["cpu", "gpu"]
        queues = "select distinct name from work_queue order by name"
        assert postgres.query(address, queues).split() == ["default", "high"]
        automations = postgres.query(address, "select name from automation order by name")
        assert automations.splitlines() == ["Crash unstarted flow runs", "Crash zombie flow runs"]
