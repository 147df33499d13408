"""One holder at a time, on both stores, whatever the holders and the server do."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rlt_core.errors import UserError
from rlt_core.store import Lease, Store
from rlt_core.store import lease as leases
from tests.rlt_core.store.attempts import KEY, at_once, attempt_with

WAITING = 8


def dead_lease(store: Store) -> bytes:
    """The lease of a machine that is gone."""
    lease = {"id": "x", "name": "", "host": "elsewhere", "pid": 1, "started": None, "renewed_at": 0}
    data = json.dumps(lease).encode()
    store.files.write("work/key/lease.json", data)
    return data


def test_one_of_many_waiting_threads_gets_an_expired_lease(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases.time, "sleep", lambda _: threading.Event().wait(0.05))
    holders, seen = [], []
    dead_lease(store)

    def work(number: int) -> None:
        with Lease(store.files, "key"):
            holders.append(number)
            threading.Event().wait(0.02)
            seen.append(list(holders))
            holders.remove(number)

    at_once(WAITING, work)
    assert sorted(seen) == [[number] for number in range(WAITING)]
    assert store.working() == {}


def test_a_create_and_a_swap_are_one_step(store: Store) -> None:
    path = "work/key/lease.json"
    created = at_once(WAITING, lambda number: store.files.create(path, str(number).encode()))
    assert created.count(True) == 1
    first = str(created.index(True)).encode()
    assert store.files.read(path) == first and store.files.names("work/key") == ["lease.json"]
    swapped = at_once(
        WAITING, lambda number: store.files.swap(path, first.__eq__, f"new {number}".encode())
    )
    assert swapped.count(True) == 1
    second = f"new {swapped.index(True)}".encode()
    assert store.files.read(path) == second
    assert not store.files.swap(path, b"other".__eq__, None)
    assert store.files.swap(path, second.__eq__, None)
    assert store.files.read(path) is None
    assert not store.files.swap(path, lambda _: True, b"")


def test_a_lease_that_cannot_be_renewed_is_tried_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "RENEW_S", 0.02)
    swap, failures = store.files.swap, 3

    def hiccup(*arguments: object) -> bool:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise UserError("the server is away")
        return swap(*arguments)

    with Lease(store.files, "key"):
        first = store.working()["key"]["renewed_at"]
        monkeypatch.setattr(store.files, "swap", hiccup)
        deadline = time.monotonic() + 20
        # A renewal may have been under way when `first` was read.
        while failures >= 0 or store.working()["key"]["renewed_at"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert store.working() == {}
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    assert "the server is away" in caplog.text


def test_a_lost_lease_is_logged_and_the_new_one_left_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "RENEW_S", 0.02)
    with Lease(store.files, "key"):
        others = dead_lease(store)
        deadline = time.monotonic() + 20
        while "was lost" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert store.files.read("work/key/lease.json") == others


# ---------------------------------------------------------------- who holds it
HOLD = """
import sys
from rlt_core.store import Lease, Store
with Lease(Store(sys.argv[1]).files, sys.argv[2], "in a container"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("unshare", [["--mount-proc"], []], ids=["own /proc", "outer /proc"])
@pytest.mark.parametrize("store_root", ["local"], indirect=True)
def test_a_holder_in_another_pid_namespace_is_alive(store: Store, unshare: list[str]) -> None:
    command = ["unshare", "--pid", "--fork", *unshare]
    if subprocess.run([*command, "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no right to make a PID namespace")
    attempt = attempt_with(store, "half")
    holder = subprocess.Popen(
        [*command, sys.executable, "-c", HOLD, str(store), KEY],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout and holder.stdin and holder.stdout.readline() == "held\n"
        assert store.working()[KEY]["host"] == socket.gethostname()
        assert store.gc() == [] and attempt.out.exists()
        holder.stdin.close()
        assert holder.wait(60) == 0
    finally:
        holder.kill()
        holder.wait()
    assert store.working() == {} and len(store.gc()) == 1


def test_a_process_finds_its_machine_without_a_machine_id(monkeypatch: pytest.MonkeyPatch) -> None:
    read_text = Path.read_text

    def without_etc(path: Path, *given: Any, **options: Any) -> str:  # as in a slim container
        return "" if path.parts[1] == "etc" else read_text(path, *given, **options)

    monkeypatch.setattr(Path, "read_text", without_etc)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert leases._machine() == f"{boot} {os.readlink('/proc/self/ns/pid')}"


HERE = "boot pid:[1]"


@pytest.mark.parametrize(
    ("machine", "pid", "started", "alive"),
    [
        (HERE, "mine", "mine", True), (HERE, "mine", "another", False), (HERE, "mine", None, True),
        (HERE, "gone", "mine", False), (HERE, "gone", None, False), (None, "gone", "mine", True),
        ("boot pid:[2]", "gone", "mine", True),
        ("another pid:[1]", "gone", "mine", True),
        ("machine boot pid:[1]", "gone", "mine", True),  # of an earlier version
    ],
)  # fmt: skip
def test_a_pid_counts_within_one_boot_and_namespace_only(
    machine: str | None, pid: str, started: str | None, alive: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setattr(leases, "_machine", lambda: HERE)
    lease: dict[str, object] = {
        "pid": os.getpid() if pid == "mine" else ended.pid, "machine": machine,
        "started": leases._process_started("self") if started == "mine" else started,
        "renewed_at": 1000.0,
    }  # fmt: skip
    assert leases.is_live(lease, 1000.0 + leases.EXPIRES_S / 2) == alive
    assert not leases.is_live(lease, 1001.0 + leases.EXPIRES_S)
    monkeypatch.setattr(leases, "_machine", lambda: None)
    assert leases.is_live(lease, 1000.0), "by time alone"
