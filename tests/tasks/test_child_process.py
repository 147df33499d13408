"""A child's result, error or death reaches its parent; it dies with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rlt_core.errors import Stopped, UserError
from rlt_core.progress import Progress
from tasks.child_process import ChildFailed, LocalChildren

HERE = "tests.tasks.test_child_process"


def work(argument: Any, progress: Progress) -> Any:
    """What the children of these tests do."""
    if argument == "mistake":
        raise UserError("row 3 is empty")
    if argument == "bug":
        raise ValueError("a bug")
    if argument == "environment":
        return dict(os.environ)
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


def run(launcher: LocalChildren, argument: Any, tmp_path: Path, progress: Any = _silent) -> Any:
    log = tmp_path / "log.txt"
    return launcher.execute(f"{HERE}:work", argument, log=log, on_progress=progress, on_line=print)


def test_results_errors_and_deaths(tmp_path: Path) -> None:
    launcher = LocalChildren([])
    seen: list[Any] = []
    assert run(launcher, 21, tmp_path, lambda *message: seen.append(message)) == 42
    assert seen == [(1, 2, {"x": 1.0})]
    with pytest.raises(UserError, match="row 3 is empty"):
        run(launcher, "mistake", tmp_path)
    with pytest.raises(ChildFailed, match="ValueError: a bug"):
        run(launcher, "bug", tmp_path)
    with pytest.raises(ChildFailed, match=r"SIGKILL(.|\n)*last words"):
        run(launcher, "die", tmp_path)


def test_asking_for_gpus_while_importing_takes_them_from_no_child(tmp_path: Path) -> None:
    """What a library may do at import, in the server: torch then has to ask NVML, not CUDA."""
    environment = run(LocalChildren([]), "environment", tmp_path)
    assert environment["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"


def test_what_children_use_is_reported_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a worker, too, whose environment says nothing of it."""
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    LocalChildren([])
    assert os.environ["DO_NOT_TRACK"] == "1"


def test_stop_reaches_the_child_and_no_other_is_started(tmp_path: Path) -> None:
    launcher = LocalChildren([])
    with pytest.raises(Stopped, match="checkpointed"):
        run(launcher, "wait", tmp_path, lambda *_: launcher.stop())
    with pytest.raises(Stopped):
        run(launcher, 1, tmp_path)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _orphan(argument: str, tmp_path: Path, asked: bool) -> int:
    """A child of a killed parent; `asked`: it was asked to stop just before."""
    program = (
        "import sys; from pathlib import Path; from tasks.child_process import LocalChildren\n"
        f"LocalChildren([]).execute('{HERE}:work', '{argument}', log=Path(sys.argv[1]), "
        "on_progress=lambda d, t, m: print(m['pid'], flush=True), on_line=print)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "log.txt")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert parent.stdout
    child = int(parent.stdout.readline())
    assert _alive(child)
    if asked:
        os.kill(child, signal.SIGTERM)
    parent.kill()
    parent.wait()
    return child


def _ends(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not _alive(pid)


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    assert _ends(_orphan("wait", tmp_path, asked=False))


@pytest.mark.parametrize("asked", [False, True])
def test_an_orphan_checkpoints_though_it_was_asked_to_stop_before(
    tmp_path: Path, asked: bool
) -> None:
    """Slurm ends all processes of a job at once, and Prefect's worker kills the parent."""
    made = tmp_path / "made"
    child = _orphan(f"checkpoint {made}", tmp_path, asked)
    assert _ends(child)
    assert made.exists()


def test_children_run_side_by_side(tmp_path: Path) -> None:
    launcher = LocalChildren([])
    running: set[int] = set()

    def progress(done: int, total: int, metrics: Any) -> None:
        running.add(metrics["pid"])
        if len(running) == 2:
            launcher.stop()

    def follow() -> None:
        with pytest.raises(Stopped):
            run(launcher, "wait", tmp_path, progress)

    threads = [threading.Thread(target=follow) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(running) == 2
