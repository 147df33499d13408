"""One holder at a time, on both stores, whatever the holders and the server do."""

from __future__ import annotations

import json
import logging
import threading
import time

import pytest

from rlt_core.errors import UserError
from rlt_core.store import Lease, Store
from rlt_core.store import lease as leases

WAITING = 8


@pytest.fixture
def store(store_root: str) -> Store:
    return Store(store_root)


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
    holders, most, passed = 0, 0, 0
    lock = threading.Lock()
    dead_lease(store)
    start = threading.Barrier(WAITING)

    def work() -> None:
        nonlocal holders, most, passed
        start.wait()
        with Lease(store.files, "key"):
            with lock:
                holders += 1
                most = max(most, holders)
            threading.Event().wait(0.02)
            with lock:
                holders -= 1
                passed += 1

    threads = [threading.Thread(target=work) for _ in range(WAITING)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, passed) == (1, WAITING)
    assert store.working() == {}


def test_a_swap_is_one_step(store: Store) -> None:
    expected = dead_lease(store)
    won: list[int] = []

    def swap(number: int) -> None:
        if store.files.swap("work/key/lease.json", expected.__eq__, str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=swap, args=(number,)) for number in range(WAITING)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.files.read("work/key/lease.json") == str(won[0]).encode()
    assert not store.files.swap("work/key/lease.json", b"other".__eq__, None)
    assert store.files.swap("work/key/lease.json", str(won[0]).encode().__eq__, None)
    assert store.files.read("work/key/lease.json") is None
    assert not store.files.swap("work/key/lease.json", lambda _: True, b"")


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
