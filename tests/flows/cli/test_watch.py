"""`rlt status --watch`: what it shows of a run's leases, and when and how it ends."""

import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flows.cli import watch as module
from flows.cli.terminal import Console
from flows.cli.watch import announced, line_of, sparkline, watch
from rlt_core.progress import CURVE_POINTS, Note, Work
from rlt_core.store import Lease, Store

RUN = """
import os, signal, sys
from flows.cli.watch import announced
from rlt_core.progress import Note
from rlt_core.store import Store
with announced(Store(sys.argv[1]), "tiny/all", lambda: Note(done=1, total=4, share=0.25)) as status:
    print("runs", flush=True)
    sys.stdin.readline()
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[2] == "2":
        sys.exit(2)
    status.append(int(sys.argv[2]))
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(module, "EVERY_S", 0.05)
    monkeypatch.setattr(module, "STARTS_IN_S", 0.2)
    return Store(str(tmp_path))


def watched(store: Store) -> tuple[int, str]:
    out = io.StringIO()
    status = watch(store, Console(file=out, width=120))
    return status, out.getvalue()


@pytest.mark.parametrize(
    ("ends", "status", "said"),
    [("0", 0, "is done"), ("1", 1, "failed (exit status 1)"), ("2", 2, "failed (exit status 2)"),
     ("130", 130, "was stopped; the same command continues it"), ("killed", 1, "was killed")],
)  # fmt: skip
def test_it_ends_as_the_run_ends(store: Store, ends: str, status: int, said: str) -> None:
    command = [sys.executable, "-c", RUN, str(store), ends]
    run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert run.stdout and run.stdout.readline() == "runs\n"
    threading.Timer(0.3, run.communicate, ["\n"]).start()
    found, shown = watched(store)
    assert found == status
    progress, end = shown.splitlines()
    assert (progress.split(), end) == (["tiny/all", "25%", "1/4"], f"tiny/all {said}")
    assert store.working() == {}


def test_two_runs_have_a_status_each_and_their_nodes_progress(store: Store) -> None:
    work = Work()
    for step in range(1, 9):
        work.reached(step, 40, {"reward": -9.0 + step, "loss": 0.5, "alarm_copied": 1.0})
    release = threading.Event()

    def run(status: int) -> None:
        node = Lease(store.files, "0" * 16, "teacher-grpo@0", note=work.note)
        with (
            announced(store, "tiny/table-1", Note) as ended,
            node if status else announced(store, "tiny/other", Note),
        ):
            release.wait(10)
            ended.append(status)

    threads = [threading.Thread(target=run, args=(status,)) for status in (0, 1)]
    for thread in threads:
        thread.start()
    threading.Timer(0.5, release.set).start()
    status, shown = watched(store)
    for thread in threads:
        thread.join()
    assert status == 1
    node = next(line for line in shown.splitlines() if line.startswith("teacher-grpo@0"))
    assert " 20%  8/40  reward -1  ▁▂▃▄▅▆▇█  about 0.0 s left  loss 0.5  alarm: copied" in node
    assert sorted(shown.splitlines()[-3:]) == [
        "tiny/other failed (exit status 1)",
        "tiny/table-1 failed (exit status 1)",
        "tiny/table-1 is done",
    ]


def test_nothing_runs(store: Store) -> None:
    assert watched(store) == (0, f"nothing runs in {store}\n")
    with Lease(store.files, "0" * 16, "student-sft@0"):
        assert line_of(store.working()["0" * 16]).split() == ["student-sft@0", "starts"]


def test_it_refreshes_in_place_on_a_terminal_and_ctrl_c_ends_only_the_watching(
    store: Store,
) -> None:
    with announced(store, "tiny/all", lambda: Note(done=1, total=4, share=0.25)):
        read, write = os.openpty()
        watching = subprocess.Popen(
            [sys.executable, "-m", "flows.cli.app", "status", "--watch", "--store", str(store)],
            stdout=write, stderr=subprocess.PIPE, env=os.environ | {"TERM": "xterm"},
        )  # fmt: skip
        os.close(write)
        shown = b""
        while shown.count(b"25%") < 2:
            shown += os.read(read, 4096)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 130 and watching.stderr and watching.stderr.read() == b""
        assert b"\x1b[2K" in shown or b"\x1b[1A" in shown  # redrawn, not printed again
        assert len(store.working()) == 1


def test_a_curve_of_any_length_is_short() -> None:
    work = Work()
    for step in range(1000):
        work.reached(step + 1, 1000, {"reward": float(step)})
    for value in ("nan", "inf"):  # a training that diverges is watched, too
        work.reached(1000, 1000, {"reward": float(value)})
    assert line_of({"name": "teacher-grpo@0", "note": work.note().model_dump()})
    curve = work.note().curve
    assert len(curve) == CURVE_POINTS and curve == sorted(curve)
    assert curve[0] == pytest.approx(12) and curve[-1] == pytest.approx(987)
    assert sparkline([]) == "" and sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([0.0, 7.0, 3.0]) == "▁█▄"
