"""The command line as a user runs it, and one finished `smoke` run for all tests to look at."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Rlt = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = [sys.executable, "-m", "flows.cli"]


def environment(home: Path) -> dict[str, str]:
    """Prefect keeps its state apart from the user's."""
    return os.environ | {"PREFECT_HOME": str(home / "prefect"), "COLUMNS": "160"}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start whole runs go to one worker, which starts with them."""
    whole_runs = [item for item in items if "home" in getattr(item, "fixturenames", ())]
    for item in whole_runs:
        item.add_marker(pytest.mark.xdist_group("whole-runs"))
    items.sort(key=lambda item: item not in whole_runs)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Prefect keeps its state."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def rlt(home: Path) -> Rlt:
    """Run `rlt` with arguments; returns the finished process."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments], capture_output=True, text=True, env=environment(home)
        )

    return run


@pytest.fixture(scope="session")
def smoke_store(rlt: Rlt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one finished `smoke` run."""
    store = tmp_path_factory.mktemp("smoke") / "store"
    done = rlt("run", "full-pipeline", "--profile", "smoke", "--store", str(store))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report.md" in done.stdout
    return store
