"""Each GPU of a machine belongs to one node at a time, whichever process computes it."""

import multiprocessing
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import gpu_driver
import pytest

from rlt_core import gpus
from rlt_core.errors import Stopped, UserError
from rlt_core.progress import Progress

spawn = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def four_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_driver.install(tmp_path, 4, monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", None)


def _hold(count: int, taken: Any, leave: Any) -> None:
    gpus.POLL_S = 0.01
    gpus.hold(count, Progress())
    taken.put(os.environ["CUDA_VISIBLE_DEVICES"])
    leave.wait(60)
    os._exit(0)  # as a killed process: nothing is released by hand


class Holder:
    """A process that holds GPUs until it is told to leave."""

    def __init__(self, count: int) -> None:
        self._taken, self._leave = spawn.Queue(), spawn.Event()
        self.process = spawn.Process(target=_hold, args=(count, self._taken, self._leave))
        self.process.start()

    def seen(self) -> str:
        """What it sees, once it has them."""
        visible: str = self._taken.get(timeout=60)
        return visible

    def waits(self) -> bool:
        return self._taken.empty() and self.process.is_alive()

    def leave(self) -> None:
        self._leave.set()
        self.process.join(60)


def test_processes_hold_gpus_of_their_own_until_they_end() -> None:
    first, second = Holder(1), Holder(2)
    a, b = first.seen().split(","), second.seen().split(",")
    assert (len(a), len(b)) == (1, 2)
    assert not {*a} & {*b}
    large = Holder(3)
    threading.Event().wait(0.5)
    small = Holder(1)
    threading.Event().wait(0.5)
    assert large.waits() and small.waits(), "the small one does not go before the large one"
    second.leave()
    c = large.seen().split(",")
    assert {*c} == {"0", "1", "2", "3"} - {*a}
    first.leave()
    assert small.seen() == a[0]
    large.leave()
    small.leave()


def test_locks_are_in_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the home; without one, of this user in the temporary folder, and never another's there."""
    holder = Holder(1)
    holder.seen()
    [lock] = (tmp_path / "home").rglob("GPU-*")
    for folder in (lock.parent, tmp_path / "home"):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not list(tmp_path.glob("rlt-*"))
    holder.leave()
    monkeypatch.setenv("RLT_HOME", "/dev/null/home")
    planted = tmp_path / f"rlt-{os.getuid()}"
    planted.symlink_to(tmp_path / "home")
    with pytest.raises(UserError, match="not a folder of this user"):
        gpus.hold(1, Progress())
    planted.unlink()
    holder = Holder(1)
    holder.seen()
    assert planted.stat().st_mode & 0o777 == 0o700
    holder.leave()


@pytest.mark.parametrize(
    ("visible", "known"),
    [
        (None, {"0": "GPU-0000", "1": "GPU-0001", "2": "GPU-0002", "3": "GPU-0003"}),
        ("2,3", {"2": "GPU-0002", "3": "GPU-0003"}),
        ("GPU-0001", {"GPU-0001": "GPU-0001"}),
        ("", {}),
    ],
)
def test_a_gpu_is_the_same_by_whatever_name(
    visible: str | None, known: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.here() == known


def test_a_machine_without_a_driver_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.here() == {}
    gpus.hold(1, Progress())
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_who_waits_can_be_stopped_and_may_lose_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "POLL_S", 0.01)
    other = Holder(4)
    other.seen()
    heard = []
    asked = Progress(lambda *said: heard.append(said), lambda: len(heard) > 3)
    with pytest.raises(Stopped):
        gpus.hold(1, asked)
    assert heard[0] == (0, 0, {}), "shown as waiting"
    with pytest.raises(UserError, match="--limit 1"):
        gpus.hold(1, Progress(), patience_s=0.1)
    other.leave()
