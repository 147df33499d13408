"""The index knows what the listing knows: never more, never less, whatever happens to its file."""

from __future__ import annotations

import multiprocessing
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from rlt_core.errors import UserError
from rlt_core.store import Ref, Store, index
from rlt_core.store.index import Select
from rlt_core.store.store import Listing
from tests.rlt_core.store.attempts import attempt_with, committed, manifest_of


@pytest.fixture
def store(store_root: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(index, "FEW", 0)
    monkeypatch.setattr(index, "SETTLED_S", -60.0)  # what is a minute ahead is settled, too
    return Store(store_root)


def attempts(store: Store) -> dict[str, str]:
    return {manifest.ref.key: manifest.attempt for manifest in store.manifests()}


def reads(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are read from now on."""
    seen: list[str] = []
    read = store.files.read

    def spy(path: str) -> bytes | None:
        seen.append(path)
        return read(path)

    monkeypatch.setattr(store.files, "read", spy)
    return seen


def test_a_manifest_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {key: committed(store, key, key) for key in ("a1", "b2", "c3")}
    seen = reads(store, monkeypatch)
    assert store.manifests() == list(made.values())
    assert sorted(seen) == [f"artifacts/evaluation/{key}.json" for key in made]
    seen.clear()
    assert store.manifests() == list(made.values())
    made["d4"] = committed(store, "d", "d4")
    seen.clear()
    assert store.manifests() == list(made.values())
    assert seen == ["artifacts/evaluation/d4.json"]


@pytest.mark.parametrize("few", [0, 100])
def test_the_newest_come_last_with_the_sums_of_all(
    store: Store, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "FEW", few)
    made = []
    for minute, key in ((3, "c3"), (1, "a1"), (2, "b2")):
        made.append(manifest_of(store, attempt_with(store, "x" * minute, key)))
        when = made[-1].finished_at + timedelta(minutes=minute)
        made[-1] = store.commit(made[-1].model_copy(update={"finished_at": when}))
    listing = store.newest(2)
    assert [one.ref.key for one in listing.manifests] == ["b2", "c3"]
    assert (listing.count, listing.bytes) == (3, 6)
    assert store.newest(2, "evaluation") == listing
    assert store.newest(2, "model") == Listing([], 0, 0)


def test_what_is_removed_disappears_and_what_is_made_anew_is_read_anew(store: Store) -> None:
    for key in ("a1", "b2"):
        committed(store, "x", key)
    before = attempts(store)
    store.remove(Ref(kind="evaluation", key="a1"))
    assert attempts(store) == {"b2": before["b2"]}
    again = committed(store, "x", "a1")
    assert again.attempt != before["a1"]
    assert attempts(store) == {"a1": again.attempt, "b2": before["b2"]}


def test_one_made_anew_between_two_looks_is_read_anew(store: Store) -> None:
    first = committed(store, "x", "a1")
    assert attempts(store) == {"a1": first.attempt}
    store.remove(first.ref)
    committed(store, "x and more", "other")
    attempt = attempt_with(store, "y", "a1")
    manifest = manifest_of(store, attempt).model_copy(update={"label": "evaluation[longer]"})
    store.commit(manifest)
    assert attempts(store)["a1"] == attempt.id


def test_a_file_deleted_by_hand_is_no_artifact(store: Store) -> None:
    for key in ("a1", "b2"):
        committed(store, "x", key)
    assert set(attempts(store)) == {"a1", "b2"}
    store.files.remove("artifacts/evaluation/a1.json")
    assert set(attempts(store)) == {"b2"}


@pytest.mark.parametrize("damage", ["text", "cut", "middle", "other tables", "folder"])
def test_a_damaged_index_is_no_harm(store: Store, damage: str) -> None:
    for number in range(30):
        committed(store, "x", f"{number:04}")
    before = attempts(store)
    file = store.files.index_file()
    data = bytearray(file.read_bytes())
    file.unlink()
    if damage == "text":
        file.write_text("not a database" * 1000)
    elif damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "middle":
        data[4096:] = os.urandom(len(data) - 4096)
        file.write_bytes(data)
    elif damage == "other tables":
        import sqlite3

        with sqlite3.connect(file) as database:
            database.execute("create table facts(path text, other int)")
        database.close()
    else:
        file.mkdir()
    assert attempts(store) == before
    store.remove(Ref(kind="evaluation", key="0000"))
    assert attempts(store).keys() == before.keys() - {"0000"}


def test_young_manifests_and_small_stores_leave_no_trace(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed(store, "x", "a1")
    monkeypatch.setattr(index, "SETTLED_S", 3600.0)
    seen = reads(store, monkeypatch)
    for _ in range(2):
        assert set(attempts(store)) == {"a1"}
    assert len(seen) == 2
    store.files.index_file().unlink()
    monkeypatch.setattr(index, "FEW", 1)
    assert set(attempts(store)) == {"a1"}
    assert not store.files.index_file().exists()


def test_stores_with_manifests_in_the_artifacts_folders_are_read(store: Store) -> None:
    old, new = committed(store, "x", "a1"), committed(store, "y", "b2")
    data = store.files.read("artifacts/evaluation/a1.json")
    assert data is not None
    store.files.remove("artifacts/evaluation/a1.json")
    store.files.write("artifacts/evaluation/a1/manifest.json", data)
    assert store.manifests() == [old, new]
    assert store.manifest("evaluation", "a1") == store.find("a1") == old
    assert store.gc() == []
    store.remove(old.ref)
    assert store.manifests() == [new]
    with pytest.raises(UserError, match="no artifact"):
        store.find("a1")


def test_the_newest_of_a_label_and_of_a_stage(store: Store) -> None:
    for key in ("a1", "b2", "c3"):
        committed(store, key, key)
    mine, all_seeds, nobodys = store.newest_of(
        [("evaluation", "evaluation[x]", 0), ("evaluation", None, None), ("evaluation", "x", None)]
    )
    assert [made.config for made in mine] == [{"a": 1}] * 3
    assert mine == all_seeds
    assert nobodys == []
    [rows] = store.index.select(Select("run, created", newest=2))
    assert [run for run, _ in rows] == ["c3", "b2"]


# ---------------------------------------------------------------- processes at once
def _work(root: str, cache: str, number: int, start: Any, results: Any) -> None:
    os.environ["XDG_CACHE_HOME"] = cache
    index.FEW, index.SETTLED_S, index.READ_AT_ONCE = 0, -60.0, 7
    store = Store(root)
    start.wait()
    counts = []
    for step in range(4):
        made = committed(store, "x", f"own-{number}-{step}")
        found = {manifest.ref.key: manifest.attempt for manifest in store.manifests()}
        assert found[made.ref.key] == made.attempt
        if step % 2:
            store.remove(made.ref)
            assert made.ref.key not in attempts(store)
        counts.append(sum(not key.startswith("own") for key in found))
    results.put(counts)


def test_processes_that_add_and_remove_at_once_see_what_is_there(
    store: Store, tmp_path: Path
) -> None:
    for key in range(20):
        committed(store, "x", f"{key:04}")
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    cache = os.environ.get("XDG_CACHE_HOME", str(tmp_path / "cache"))
    children = [
        context.Process(target=_work, args=(str(store), cache, number, start, results))
        for number in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    assert [results.get(timeout=5) for _ in children] == [[20] * 4] * 2
    assert len(attempts(store)) == 20 + 2 * 2
