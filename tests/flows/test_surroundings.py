"""Faults of the machine end a command in one line with its status; the same command goes on."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tasks.child_process import SHARED_SERVER
from tests.flows.conftest import COMMAND, Rlt, Served

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def run(
    *arguments: str, redirected: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command in a shell, without the caller's proxies."""
    own = {k: v for k, v in os.environ.items() if k.lower() not in PROXIES} | environment
    words = ["bash", "-c", f'exec "$@" {redirected}', "rlt", *COMMAND, *arguments]
    return subprocess.run(words, capture_output=True, text=True, env=own)


def one_line(done: subprocess.CompletedProcess[str], status: int, *parts: str) -> None:
    assert done.returncode == status, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("rlt: ") and all(part in line for part in parts), line


@pytest.mark.parametrize("command", ["artifacts list", "sql select(1) --json", "--version"])
def test_an_output_that_cannot_be_written_is_named(command: str, tmp_path: Path) -> None:
    store = {"RLT_STORE": str(tmp_path / "store")}
    (tmp_path / "store").mkdir()
    words = command.replace("--json", "--format json").split()
    one_line(run(*words, redirected="> /dev/full", **store), 1, "standard output", "No space left")
    if command == "artifacts list":
        one_line(run(*words, redirected=">&-", **store), 1, "standard output is closed")
        assert "Traceback" not in run(*words, redirected="| true", **store).stderr


def test_a_deleted_working_directory_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["bash", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', str(gone), *COMMAND, "plan"],
        capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    one_line(done, 2, "working directory was deleted")


@pytest.mark.parametrize("words", [["plan", "--store", ""], ["plan", "--store="], ["report", ""]])
def test_an_empty_argument_is_no_default(words: list[str], rlt_inside: Rlt) -> None:
    one_line(rlt_inside(*words), 2, f"nothing follows {words[-1] or words[-2]}")


def test_the_output_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    done = run("sql", "select '⏎' as a", RLT_STORE=str(tmp_path), PYTHONIOENCODING="ascii")
    assert "⏎" in done.stdout, done.stderr


def test_a_server_that_does_not_answer_is_named() -> None:
    api = "http://127.0.0.1:9/api"
    one_line(run("worker", "--pool", "cpu", PREFECT_API_URL=api), 2, f"PREFECT_API_URL={api}")


# ---------------------------------------------------------------- Ctrl-C
COUNTS = "select count(*) from range(1000000000) a, range(1000) b where (a.range + b.range) % 7 = 3"
WRITES = "select * from range(1000000000)"


@pytest.mark.parametrize(("query", "format"), [(COUNTS, "table"), (WRITES, "csv")])
def test_the_first_ctrl_c_ends_a_query(query: str, format: str, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    ready = tmp_path / "result"
    process = subprocess.Popen(
        [*COMMAND, "sql", "--store", str(tmp_path / "store"), "--format", format, query],
        stdout=ready.open("wb"), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    own = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    try:
        while own.num_threads() < 2 or not (ready.stat().st_size or format == "table"):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=15)
    finally:
        process.kill()  # else a query that goes on takes a core for minutes
    assert (process.returncode, errors) == (130, "")


# ---------------------------------------------------------------- full disks
@pytest.fixture
def disk(small_disk: Callable[[Path, str], Path]) -> Path:
    """A small disk of its own; sockets below TMPDIR need a short path."""
    return small_disk(Path(tempfile.mkdtemp()), "32m")


def fill(disk: Path, left: int) -> Path:
    """A file that leaves so many bytes."""
    status = os.statvfs(disk)
    file = disk / "filler"
    file.write_bytes(bytes(status.f_bavail * status.f_frsize - left))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("place", ["store", "TMPDIR"])
def test_a_full_disk_is_named_and_the_same_command_goes_on(
    rlt: Rlt, served: Served, disk: Path, tmp_path: Path, place: str
) -> None:
    store = (disk if place == "store" else tmp_path) / "store"
    # Declared large: the disk is to fill up after the plan.
    large = ["--set", "resources.disk_gb=1"]
    command = ["run", "teacher-sft", "-p", "smoke", "--store", str(store), *large]
    made = rlt("run", "base-model", *command[2:])
    assert made.returncode == 0, made.stdout + made.stderr
    filler = fill(disk, left=48 << 10)
    environment = served.environment()
    if place == "TMPDIR":
        # What is forked from the served fork server has its TMPDIR.
        environment = environment | {"TMPDIR": str(disk), SHARED_SERVER: ""}
    done = subprocess.run([*COMMAND, *command], capture_output=True, text=True, env=environment)
    if place == "store":
        assert done.returncode == 1, done.stdout + done.stderr
        (line,) = (line for line in done.stdout.splitlines() if "disk full" in line)
        assert str(disk) in line and "missing" in line
        assert "Traceback" not in done.stdout + done.stderr
    else:
        assert "Traceback" not in done.stdout + done.stderr
    filler.unlink()
    done = rlt(*command)
    assert done.returncode == 0, done.stdout + done.stderr
