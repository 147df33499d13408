"""The command line as a user runs it."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer import Typer
from typer.testing import CliRunner

from flows.cli.app import main
from flows.server.processes import Processes
from rlt_core.errors import UserError
from rlt_core.store import Manifest, Store
from tasks.child_process import SHARED_SERVER
from tests.smoke_run import COMMAND, environment

Rlt = Callable[..., subprocess.CompletedProcess[str]]
FORK_SERVER = """
import os, signal, sys
from pathlib import Path
from rlt_core.stages import STAGES
from tasks.child_process import SHARED_SERVER, share_fork_server

share_fork_server(sorted(stage.module for stage in STAGES.values()))
new = Path(sys.argv[1] + ".new")
new.write_text(os.environ[SHARED_SERVER])
new.rename(sys.argv[1])
signal.pause()
"""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start whole runs go to one worker."""
    for item in items:
        whole = {"home", "smoke_store"} & set(getattr(item, "fixturenames", ()))
        if whole and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("whole-runs"))


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Prefect keeps its state."""
    return tmp_path_factory.mktemp("home")


class Served:
    """A fork server that has done its imports, as a worker has one: a run that finds it begins at
    once. Started when first wanted."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._processes = Processes(home)
        self._own: dict[str, str] = {}

    def environment(self) -> dict[str, str]:
        """Of a command that finds it."""
        if not self._own:
            file, found = self._home / "fork-server", environment(self._home)
            command = [sys.executable, "-c", FORK_SERVER, str(file)]
            self._processes.start("fork-server", command, found)
            while not file.exists():
                assert self._processes.alive("fork-server")
                time.sleep(0.1)
            self._own = {SHARED_SERVER: file.read_text()}
        return environment(self._home) | self._own

    @property
    def at_work(self) -> bool:
        """Whether the fork server has children that compute."""
        return any(
            "fork_server import serve" in " ".join(process.cmdline()) and process.children()
            for process in self._processes.marked()
        )

    def stop(self) -> None:
        """End it, and all that it started."""
        if self._own:
            self._processes.stop(["fork-server"], 5)
            self._processes.stop_others(0)


@pytest.fixture(scope="session")
def served(home: Path) -> Iterator[Served]:
    """For the runs whose own imports are not what is tested."""
    made = Served(home / "served")
    yield made
    made.stop()


@pytest.fixture(scope="session")
def rlt_process(served: Served) -> Rlt:
    """Run `rlt` with arguments as a process of its own; returns the finished process."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments], capture_output=True, text=True, env=served.environment()
        )

    return run


def invoke(app: Typer, *arguments: object, code: int = 0, text: str | None = None) -> Result:
    """A command of one group in this process, with its exit status checked; raises its
    UserError."""
    result = CliRunner().invoke(app, list(map(str, arguments)), input=text)
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def inside(
    variables: Callable[[], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Rlt:
    """`rlt` in this process, which has done the imports; what computes is another one."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        for name, value in variables().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["rlt", *arguments])
        capfd.readouterr()
        terminate = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            main()
        signal.signal(signal.SIGTERM, terminate)
        status = int(ended.value.code or 0)
        return subprocess.CompletedProcess(arguments, status, *capfd.readouterr())

    return run


@pytest.fixture
def rlt(served: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Rlt:
    """`rlt` for commands that compute."""
    return inside(served.environment, monkeypatch, capfd)


@pytest.fixture
def rlt_inside(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Rlt:
    """`rlt` for commands that compute nothing."""
    return inside(lambda: environment(tmp_path / "home"), monkeypatch, capfd)


@pytest.fixture
def store(smoke_store: Path, tmp_path: Path) -> Path:
    """A copy of the finished run's store, which a test may change."""
    copy = tmp_path / "store"
    shutil.copytree(smoke_store, copy)
    return copy


def forget(store: Path, name: str) -> Manifest:
    """Remove an artifact of the `smoke` profile from a store."""
    opened = Store(str(store))
    manifest = opened.find(f"smoke/{name}")
    opened.remove(manifest.ref)
    return manifest
