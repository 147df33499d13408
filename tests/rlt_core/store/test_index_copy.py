"""A machine that is new to a store begins with the index that another has left there."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlt_core.errors import UserError
from rlt_core.store import Manifest, Ref, Store, index, index_copy
from tests.rlt_core.store.attempts import committed

COPY = index_copy.path(index.VERSION)


@pytest.fixture(autouse=True)
def every_store_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "FEW", 0)
    monkeypatch.setattr(index, "SETTLED_S", -60.0)  # what is a minute ahead is settled, too
    monkeypatch.setattr(index_copy, "MANY", 3)


@pytest.fixture
def made(s3_root: str, tmp_path: Path) -> list[Manifest]:
    """Artifacts that a first machine has committed and looked at."""
    store = Store(s3_root, tmp_path / "first")
    made = [committed(store, key, key) for key in ("a1", "b2", "c3")]
    assert store.files.read(COPY) is None
    assert store.manifests() == made
    assert store.files.read(COPY)
    return made


def new_machine(root: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, list[str]]:
    """A store on a machine without copies, and the manifests that it reads from now on."""
    store = Store(root, cache)
    seen: list[str] = []
    read = store.files.read

    def spy(path: str) -> bytes | None:
        data = read(path)
        if data is not None and path != COPY:
            seen.append(path)
        return data

    monkeypatch.setattr(store.files, "read", spy)
    return store, seen


def test_a_new_machine_reads_no_manifest_again(
    s3_root: str, tmp_path: Path, made: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, seen = new_machine(s3_root, tmp_path / "second", monkeypatch)
    assert store.manifests() == made
    assert seen == []


def test_what_came_and_went_after_the_copy_is_known(
    s3_root: str, tmp_path: Path, made: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Store(s3_root, tmp_path / "first")
    first.remove(Ref(kind="evaluation", key="a1"))
    first.remove(Ref(kind="evaluation", key="b2"))
    anew, new = committed(first, "made anew, and longer", "b2"), committed(first, "x", "d4")
    store, seen = new_machine(s3_root, tmp_path / "second", monkeypatch)
    assert store.manifests() == [anew, made[2], new]
    assert sorted(seen) == [f"artifacts/evaluation/{key}.json" for key in ("b2", "d4")]


@pytest.mark.parametrize("damage", ["cut", "other bytes", "packed text"])
def test_a_damaged_copy_is_no_harm_and_is_replaced(
    s3_root: str, tmp_path: Path, made: list[Manifest], damage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import pyarrow as pa

    files = Store(s3_root).files
    intact = files.read(COPY)
    assert intact
    text = pa.compress(b"no database" * 1000, codec="zstd", asbytes=True)
    files.write(
        COPY, {"cut": intact[: len(intact) // 2], "other bytes": b"x" * 999}.get(damage, text)
    )
    for cache in ("second", "third"):
        store, seen = new_machine(s3_root, tmp_path / cache, monkeypatch)
        assert store.manifests() == made
        assert len(seen) == (3 if cache == "second" else 0)


def test_a_store_that_may_not_be_written_is_read(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [committed(Store(s3_root), key, key) for key in ("a1", "b2", "c3")]
    store = Store(s3_root, tmp_path / "second")

    def refused(*_: object) -> None:
        raise UserError("no access")

    monkeypatch.setattr(store.files, "put", refused)
    assert store.manifests() == made
    assert store.files.read(COPY) is None


def test_the_journal_of_a_deleted_index_is_not_played_into_the_copy(
    s3_root: str, tmp_path: Path, made: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, seen = new_machine(s3_root, tmp_path / "second", monkeypatch)
    file = store.files.index_file()
    file.parent.mkdir(parents=True)
    journal = file.with_name(f"{file.name}-journal")
    journal.write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + b"\0" * 2000)
    assert store.manifests() == made
    assert seen == []


def test_the_copy_is_no_artifact_and_no_garbage(
    s3_root: str, tmp_path: Path, made: list[Manifest]
) -> None:
    store = Store(s3_root, tmp_path / "second")
    assert store.gc() == []
    assert store.files.read(COPY)
