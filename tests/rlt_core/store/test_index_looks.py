"""Who only looks lists a store on S3 after a change only, and misses none that was announced."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest

from rlt_core.store import Ref, Store, index
from tests.rlt_core.store.attempts import committed

A1 = Ref(kind="evaluation", key="a1")


@pytest.fixture
def store(s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of two artifacts that has been looked at."""
    monkeypatch.setattr(index, "FEW", 0)
    monkeypatch.setattr(index, "SETTLED_S", -60.0)  # what is a minute ahead is settled, too
    store = Store(s3_root, tmp_path / "first")
    for key in ("a1", "b2"):
        committed(store, key, key)
    assert look(store).keys() == {"a1", "b2"}
    return store


@pytest.fixture
def elsewhere(s3_root: str, tmp_path: Path) -> Store:
    """The same on another machine."""
    return Store(s3_root, tmp_path / "second")


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process ends before it announces what it has done."""
    monkeypatch.setattr(index.Index, "announce", lambda _: None)


def look(store: Store) -> dict[str, str]:
    return {one.ref.key: one.attempt for one in store.newest(100).manifests}


def listings(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are listed from now on."""
    seen: list[str] = []
    names = store.files.names

    def spy(path: str) -> list[str]:
        seen.append(path)
        return names(path)

    monkeypatch.setattr(store.files, "names", spy)
    return seen


def test_a_store_that_stands_still_is_listed_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = look(store)
    seen = listings(store, monkeypatch)
    for _ in range(3):
        assert look(store) == before
        assert store.newest_of([("evaluation", None, None)]) != [[]]
    assert seen == []
    assert {one.ref.key for one in store.manifests()} == before.keys()
    assert seen, "who does more than look lists"


def test_what_another_machine_does_is_seen_at_once(store: Store, elsewhere: Store) -> None:
    made = committed(elsewhere, "c", "c3")
    assert look(store).keys() == {"a1", "b2", "c3"}
    elsewhere.remove(A1)
    assert look(store).keys() == {"b2", "c3"}
    elsewhere.remove(made.ref)
    again = committed(elsewhere, "longer in the same second", "c3")
    assert look(store)["c3"] == again.attempt != made.attempt


def test_what_nobody_announced_is_seen_after_a_while(
    store: Store, elsewhere: Store, killed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed(elsewhere, "c", "c3")
    elsewhere.remove(A1)
    assert look(store).keys() == {"a1", "b2"}
    monkeypatch.setattr(index, "TRUSTED_S", 0.0)
    assert look(store).keys() == {"b2", "c3"}


def test_nothing_is_deleted_or_computed_on_a_look(
    store: Store, elsewhere: Store, killed: None
) -> None:
    made = committed(elsewhere, "c", "c3")
    assert "c3" not in look(store)
    assert store.gc() == []
    assert elsewhere.verify(made) == []
    assert store.manifest("evaluation", "c3") == made
    assert {one.ref.key for one in store.manifests()} == {"a1", "b2", "c3"}


def test_a_process_that_listed_earlier_spoils_no_look(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = look(store)
    manifests, folders = store.index.listed()
    manifests.pop("artifacts/evaluation/a1.json")
    slow = Store(str(store), store.files.cache.home)  # type: ignore[attr-defined]
    monkeypatch.setattr(slow.index, "listed", lambda: (manifests, folders))
    slow.manifests()
    assert look(store) == now


def test_a_process_that_read_what_was_then_removed_spoils_no_look(
    store: Store, elsewhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = committed(elsewhere, "c", "c3")
    slow = Store(str(store), store.files.cache.home)  # type: ignore[attr-defined]
    read_many = slow.files.read_many

    def slowly(paths: Iterable[str]) -> dict[str, bytes]:
        found = read_many(paths)
        if found:
            elsewhere.remove(made.ref)
            assert look(store).keys() == {"a1", "b2"}
        return found

    monkeypatch.setattr(slow.files, "read_many", slowly)
    slow.manifests()
    assert look(store).keys() == {"a1", "b2"}


def test_manifests_that_may_still_change_are_read_at_each_look(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "SETTLED_S", 3600.0)
    committed(store, "c", "c3")
    for _ in range(2):
        assert look(store).keys() == {"a1", "b2", "c3"}
    store.files.remove("artifacts/evaluation/c3.json")
    assert look(store).keys() == {"a1", "b2"}


def test_an_index_that_cannot_be_written_is_no_harm(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = look(store)
    monkeypatch.setattr(index, "BUSY_S", 0.1)
    store.index.announce()
    with closing(sqlite3.connect(store.files.index_file())) as other:
        other.execute("begin immediate")
        seen = listings(store, monkeypatch)
        assert look(store) == before
        assert len(seen) == 1
        monkeypatch.setattr(store.files, "read_many", lambda paths: dict.fromkeys(paths, b"?"))
        assert look(store) == before, "nothing was read again"
    assert look(store) == look(store) == before
    assert len(seen) == 3


def test_a_store_without_announcements_is_listed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.files.remove(index.CHANGED)
    seen = listings(store, monkeypatch)
    for _ in range(2):
        assert look(store).keys() == {"a1", "b2"}
    assert len(seen) == 2
