"""Processes of other listings and other versions share the file of an index."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from rlt_core.store import Store, index
from tests.rlt_core.store.attempts import committed


@pytest.fixture
def store(store_root: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(index, "FEW", 0)
    monkeypatch.setattr(index, "SETTLED_S", -60.0)  # what is a minute ahead is settled, too
    return Store(store_root)


def test_who_listed_earlier_drops_rows_and_nobody_misses_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = committed(store, "x", "a1")
    late = Store(str(store))
    listed = late.index.listed()
    monkeypatch.setattr(late.index, "listed", lambda: listed)
    second = committed(store, "x", "b2")
    seen = []
    hold = store.index._hold

    def hold_late(database: sqlite3.Connection) -> None:
        seen.append(late.manifests())
        hold(database)

    monkeypatch.setattr(store.index, "_hold", hold_late)
    assert store.manifests() == [first, second]
    assert seen == [[first]]


def test_an_index_of_another_version_is_made_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [committed(store, "x", key) for key in ("a1", "b2")]
    assert store.manifests() == made
    with closing(sqlite3.connect(store.files.index_file())) as database, database:
        database.execute("alter table facts rename column label to name")
        database.execute(f"pragma user_version = {index.VERSION + 1}")
    assert store.manifests() == made
    monkeypatch.setattr(store.files, "read_many", lambda paths: dict.fromkeys(paths))
    assert store.manifests() == made  # without a look at the files
