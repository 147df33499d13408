"""A child's result, error or death reaches its parent; it dies with its parent."""

import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlt_core.checkout import sources_changed_at
from rlt_core.errors import Stopped, UserError
from rlt_core.progress import Progress
from tasks import child_process, fork_server
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
        return psutil.Process(os.getppid()).ppid()  # behind its supervisor
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
    with pytest.raises(ChildFailed, match=r"SIGKILL(.|\n)*last words") as died:
        run(children, "die", tmp_path, on_line=lines.append)
    assert died.value.killed
    assert lines == ["last words"]


def test_a_log_that_another_has_put_there_is_not_written(tmp_path: Path) -> None:
    log, outside = tmp_path / "log.txt", tmp_path / "outside"
    for plant in (lambda: os.mkfifo(log), lambda: log.symlink_to(outside), log.mkdir):
        plant()
        with pytest.raises(UserError, match=r"log.txt is a link or no file; delete it"):
            run(ChildProcesses([]), 21, tmp_path)
        log.rmdir() if log.is_dir() else log.unlink()
    assert not outside.exists()


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


@pytest.mark.parametrize(
    ("graces", "says"),
    [([math.inf], "checkpointed"), ([math.inf, 0.0], "killed"), ([0.2], "killed")],
)
def test_a_stop_waits_for_the_step_as_long_as_it_says_and_a_second_one_kills(
    tmp_path: Path, graces: list[float], says: str
) -> None:
    """The step ends 1 s after it hears the request."""
    children, made = ChildProcesses([]), tmp_path / "made"

    def press(*_: object) -> None:
        while graces:
            children.stop(graces.pop(0))

    with pytest.raises(Stopped, match=says):
        run(children, f"checkpoint {made}", tmp_path, press)
    assert made.exists() is (says == "checkpointed")


def test_a_stop_request_that_comes_at_once_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the child has its handler."""
    start = child_process._fork

    def fork(*arguments: Any) -> Any:
        pid, channel = start(*arguments)
        os.kill(pid, signal.SIGTERM)
        return pid, channel

    monkeypatch.setattr(child_process, "_fork", fork)
    with pytest.raises(Stopped, match="checkpointed"):
        run(ChildProcesses([]), "wait", tmp_path)


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
KILLED: set[int] = set()
"""Servers that a test has killed."""
WORKER = f"""
import os, signal
from tasks import child_process

child_process.share_fork_server(["{HERE}"])
print(os.environ[child_process.SHARED_SERVER], child_process._own.process.pid, flush=True)
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
    folder = Path(found.partition(":")[2]).parent
    assert folder.exists() == (int(pid) in KILLED), "and removes its socket"


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
    KILLED.add(pid)
    for named in (older, found):
        environment = ENVIRONMENT | {SHARED_SERVER: named}
        said, _ = parent("parent", tmp_path, environment).communicate(timeout=60)
        assert int(said) != pid


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def connected(address: str, first: bytes) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    connection.sendall(first)
    return connection


def test_connections_that_say_nothing_or_nonsense_delay_nobody(
    worker: tuple[str, int, subprocess.Popen[str]], tmp_path: Path
) -> None:
    found, pid, _ = worker
    address = found.partition(":")[2]
    bomb = pickle.dumps(Malicious(tmp_path / "unpickled"))
    words = (b"", b"{", b"[]\n", b"\0" * 70_000, bomb, bomb + b"\n", b'{"target": "os:abort"}\n')
    strangers = [connected(address, word) for word in words * 3]
    said, _ = parent("parent", tmp_path, ENVIRONMENT | {SHARED_SERVER: found}).communicate(
        timeout=60
    )
    assert said.split() == [str(pid)]
    assert not (tmp_path / "unpickled").exists()
    for stranger in strangers:
        stranger.close()


@pytest.mark.parametrize(
    "how", ["silent", "ends", "nonsense", "no listener", "no socket", "no folder"]
)
def test_a_server_that_does_not_fork_hangs_no_run(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "IMPORT_S", 0.5)
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        if how in ("silent", "ends", "nonsense"):
            listener.listen()

        def answer() -> None:
            connection = listener.accept()[0]
            if how == "nonsense":
                connection.sendall(b'{"pid": "none"}\n')
            connection.close()

        if how in ("ends", "nonsense"):
            threading.Thread(target=answer, daemon=True).start()
        name = {"no socket": "other", "no folder": "gone/socket"}.get(how, "socket")
        monkeypatch.setenv(SHARED_SERVER, f"{sources_changed_at()}:{tmp_path / name}")
        assert run(ChildProcesses([]), 21, tmp_path) == 42


NOBODY = 65534
ELSE = """
import os, socket, sys
os.setuid(65534)
there = socket.socket(socket.AF_UNIX)
if sys.argv[1] == "listen":
    there.bind(sys.argv[2])
    there.listen()
    print("ready", flush=True)
    connection = there.accept()[0]
else:
    there.connect(sys.argv[2])
    connection = there
    print("ready", flush=True)
print(connection.recv(100))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user")
def test_another_users_server_or_client_gets_no_byte(
    worker: tuple[str, int, subprocess.Popen[str]],
) -> None:
    """Were the folder open to all."""
    address = worker[0].partition(":")[2]
    Path(address).parent.chmod(0o777)
    Path(address).chmod(0o777)
    other = str(Path(address).with_name("other"))
    for how, place in (("connect", address), ("listen", other)):
        stranger = subprocess.Popen(
            [sys.executable, "-c", ELSE, how, place], stdout=subprocess.PIPE, text=True
        )
        assert stranger.stdout and stranger.stdout.readline() == "ready\n"
        if how == "listen":
            with pytest.raises(fork_server.Silent, match="another user's"):
                fork_server.fork(place, {})
        assert stranger.stdout.read() == "b''\n"
        stranger.wait()
