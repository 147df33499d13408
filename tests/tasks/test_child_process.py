"""A child's result, error or death reaches its parent; it dies with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlt_core.errors import Stopped, UserError
from rlt_core.progress import Progress
from tasks.child_process import SHARED_SERVER, ChildFailed, ChildProcesses

HERE = "tests.tasks.test_child_process"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def work(argument: Any, progress: Progress) -> Any:
    """What the children of these tests do."""
    if argument == "mistake":
        raise UserError("row 3 is empty")
    if argument == "bug":
        raise ValueError("a bug")
    if argument == "environment":
        return dict(os.environ)
    if argument == "parent":
        return os.getppid()
    if argument == "die":
        print("last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if argument == "wait":
        while not progress.should_stop():
            progress.report(1, 2, {"pid": os.getpid()})
            time.sleep(0.05)
        raise Stopped("checkpointed")
    if isinstance(argument, str) and argument.startswith("checkpoint "):
        while not progress.should_stop():
            progress.report(1, 2, {"pid": os.getpid()})
            time.sleep(0.05)
        time.sleep(1)
        Path(argument.removeprefix("checkpoint ")).touch()
        raise Stopped("checkpointed")
    progress.report(1, 2, {"x": 1.0})
    return argument * 2


def _silent(done: int, total: int, metrics: Any) -> None:
    pass


def run(
    children: ChildProcesses,
    argument: Any,
    tmp_path: Path,
    progress: Any = _silent,
    on_line: Callable[[str], None] = print,
) -> Any:
    log = tmp_path / "log.txt"
    return children.execute(
        f"{HERE}:work", argument, log=log, on_progress=progress, on_line=on_line
    )


def test_results_errors_lines_and_deaths(tmp_path: Path) -> None:
    children = ChildProcesses([])
    seen: list[Any] = []
    lines: list[str] = []
    assert run(children, 21, tmp_path, lambda *message: seen.append(message)) == 42
    assert seen == [(1, 2, {"x": 1.0})]
    with pytest.raises(UserError, match="row 3 is empty"):
        run(children, "mistake", tmp_path)
    with pytest.raises(ChildFailed, match="ValueError: a bug"):
        run(children, "bug", tmp_path)
    with pytest.raises(ChildFailed, match=r"SIGKILL(.|\n)*last words"):
        run(children, "die", tmp_path, on_line=lines.append)
    assert lines == ["last words"]


def test_a_childs_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONLY_HERE", "yes")
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    environment = run(ChildProcesses([]), "environment", tmp_path)
    assert environment["ONLY_HERE"] == "yes"
    assert environment["DO_NOT_TRACK"] == "1"
    # What a library asks for at import takes no GPU from a child: torch has to ask NVML, not CUDA.
    assert environment["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"


def test_stop_reaches_the_child_and_no_other_is_started(tmp_path: Path) -> None:
    children = ChildProcesses([])
    with pytest.raises(Stopped, match="checkpointed"):
        run(children, "wait", tmp_path, lambda *_: children.stop())
    with pytest.raises(Stopped):
        run(children, 1, tmp_path)


def test_children_run_side_by_side(tmp_path: Path) -> None:
    children = ChildProcesses([])
    running: set[int] = set()

    def progress(done: int, total: int, metrics: Any) -> None:
        running.add(metrics["pid"])
        if len(running) == 2:
            children.stop()

    def follow() -> None:
        with pytest.raises(Stopped):
            run(children, "wait", tmp_path, progress)

    threads = [threading.Thread(target=follow) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(running) == 2


# ---------------------------------------------------------------- parents that are killed
PARENT = f"""
import sys
from pathlib import Path
from tasks.child_process import ChildProcesses

found = ChildProcesses([]).execute(
    "{HERE}:work", sys.argv[1], log=Path(sys.argv[2]), on_line=print,
    on_progress=lambda d, t, m: print(m.get("pid"), flush=True),
)
print(found)
"""


def parent(argument: str, tmp_path: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A process that has a child work."""
    command = [sys.executable, "-c", PARENT, argument, str(tmp_path / "log.txt")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def orphan(argument: str, tmp_path: Path, environment: dict[str, str], asked: bool) -> int:
    """A child of a killed parent; `asked`: it was asked to stop just before."""
    started = parent(argument, tmp_path, environment)
    assert started.stdout
    child = int(started.stdout.readline())
    assert psutil.pid_exists(child)
    if asked:
        os.kill(child, signal.SIGTERM)
    started.kill()
    started.wait()
    return child


def ends(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return True
    deadline = time.monotonic() + 15
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize("asked", [False, True])
def test_an_orphan_checkpoints_though_it_was_asked_to_stop_before(
    tmp_path: Path, asked: bool
) -> None:
    """Slurm ends all processes of a job at once, and Prefect's worker kills the parent."""
    made = tmp_path / "made"
    assert ends(orphan(f"checkpoint {made}", tmp_path, ENVIRONMENT, asked))
    assert made.exists()


# ---------------------------------------------------------------- a fork server for several
WORKER = f"""
import os, signal
from multiprocessing import forkserver
from tasks.child_process import SHARED_SERVER, share_fork_server

share_fork_server(["{HERE}"])
print(os.environ[SHARED_SERVER], forkserver._forkserver._forkserver_pid, flush=True)
signal.pause()
"""


@pytest.fixture
def worker() -> Iterator[tuple[str, int, subprocess.Popen[str]]]:
    """What a worker's runs find in their environment, the server's pid, and the worker."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout
    found, pid = process.stdout.readline().split()
    yield found, int(pid), process
    process.kill()
    process.wait()
    assert ends(int(pid)), "it ends with its worker"


def test_runs_fork_from_their_workers_server(
    worker: tuple[str, int, subprocess.Popen[str]], tmp_path: Path
) -> None:
    found, pid, _ = worker
    socket = Path(found.partition(":")[2])
    assert socket.parent.stat().st_mode & 0o077 == 0, "for this user alone"
    environment = ENVIRONMENT | {SHARED_SERVER: found}
    for _ in range(2):
        said, _ = parent("parent", tmp_path, environment).communicate(timeout=60)
        assert said.split() == [str(pid)]
    assert ends(orphan("wait", tmp_path, environment, asked=False))


def test_other_code_or_a_killed_server_means_one_of_ones_own(
    worker: tuple[str, int, subprocess.Popen[str]], tmp_path: Path
) -> None:
    found, pid, _ = worker
    older = f"1.0:{found.partition(':')[2]}"
    os.kill(pid, signal.SIGKILL)
    for named in (older, found):
        environment = ENVIRONMENT | {SHARED_SERVER: named}
        said, _ = parent("parent", tmp_path, environment).communicate(timeout=60)
        assert int(said) != pid
