"""The launcher that stays does what a launcher does, for processes that come and go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlt_core.errors import Stopped, UserError
from tasks import warm
from tasks.child_process import ChildFailed, ChildProcesses, LocalChildren

WORK = "tests.tasks.test_child_process:work"
ROOT = Path(__file__).parents[2]
SERVE = "import sys; from pathlib import Path; from tasks import warm; warm.STAGES = {}; "


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A serving process without the stages' imports, which take long and change nothing here."""
    file = tmp_path_factory.mktemp("warm") / "launcher.json"
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE + "warm.serve(Path(sys.argv[1]))", str(file)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield file
    process.kill()
    process.wait()


@pytest.fixture
def launcher(access: Path, monkeypatch: pytest.MonkeyPatch) -> ChildProcesses:
    monkeypatch.setenv(warm.VARIABLE, str(access))
    found = warm.launcher_for([])
    assert isinstance(found, warm.WarmLauncher)
    return found


def run(launcher: ChildProcesses, argument: Any, tmp_path: Path, **listeners: Any) -> Any:
    quiet = {"on_progress": lambda *_: None, "on_line": lambda _: None}
    log = tmp_path / "log.txt"
    return launcher.execute(WORK, argument, log=log, **{**quiet, **listeners})


def test_results_errors_deaths_and_lines(launcher: ChildProcesses, tmp_path: Path) -> None:
    seen: list[Any] = []
    lines: list[str] = []
    assert run(launcher, 21, tmp_path, on_progress=lambda *message: seen.append(message)) == 42
    assert seen == [(1, 2, {"x": 1.0})]
    with pytest.raises(UserError, match="row 3 is empty"):
        run(launcher, "mistake", tmp_path)
    with pytest.raises(ChildFailed, match="ValueError: a bug"):
        run(launcher, "bug", tmp_path)
    with pytest.raises(ChildFailed, match="SIGKILL"):
        run(launcher, "die", tmp_path, on_line=lines.append)
    assert lines == ["last words"]


def test_stop_reaches_the_child(launcher: ChildProcesses, tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="checkpointed"):
        run(launcher, "wait", tmp_path, on_progress=lambda *_: launcher.stop())
    with pytest.raises(Stopped):
        run(launcher, 1, tmp_path)


def environment_of_child(argument: str, progress: Any) -> str | None:
    return os.environ.get(argument)


def test_a_child_has_the_environment_of_the_run_that_wants_it(
    launcher: ChildProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLY_HERE", "yes")
    target = "tests.tasks.test_warm:environment_of_child"
    found = launcher.execute(
        target, "ONLY_HERE", log=tmp_path / "log.txt", on_progress=lambda *_: None, on_line=print
    )
    assert found == "yes"


def test_a_child_ends_when_the_run_that_wanted_it_is_killed(access: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tasks import warm\n"
        f"warm.launcher_for([]).execute('{WORK}', 'wait', log=Path(sys.argv[1]), on_line=print, "
        "on_progress=lambda d, t, m: print(m['pid'], flush=True))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "log.txt")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), warm.VARIABLE: str(access)},
    )
    assert parent.stdout
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_other_code_or_no_answer_means_a_launcher_of_ones_own(
    access: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = json.loads(access.read_text())
    file = tmp_path / "launcher.json"
    monkeypatch.setenv(warm.VARIABLE, str(file))
    for change in ({"sources": now["sources"] - 1}, {"key": "00" * 16}, {"port": 1}):
        file.write_text(json.dumps({**now, **change}))
        assert isinstance(warm.launcher_for([]), LocalChildren), change
    file.unlink()
    assert isinstance(warm.launcher_for([]), LocalChildren)
