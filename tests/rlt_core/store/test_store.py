"""No manifest, no artifact; the first to commit wins; nothing half-written is ever seen."""

import errno
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlt_core.environment import DiskFull
from rlt_core.errors import UserError
from rlt_core.store import Lease, Ref, Store
from rlt_core.store.files import Files
from rlt_core.store.transfer import copy_artifact
from tests.rlt_core.store.attempts import KEY, attempt_with, key, manifest_of


def test_an_attempt_is_nothing_until_its_manifest_is_there(store: Store) -> None:
    attempt = attempt_with(store, "one")
    assert store.manifest("evaluation", KEY) is None
    assert list(store.manifests()) == []
    assert [orphan.path for orphan in store.orphans()] == [
        f"artifacts/evaluation/{KEY}/{attempt.id}"
    ]
    committed = store.commit(manifest_of(store, attempt))
    assert list(store.manifests()) == [committed]
    assert store.orphans() == []


def test_the_first_commit_wins_and_the_loser_leaves_nothing(store: Store) -> None:
    first, second = attempt_with(store, "one"), attempt_with(store, "two")
    store.commit(manifest_of(store, first))
    standing = store.commit(manifest_of(store, second))
    assert standing.attempt == first.id
    assert (store.intact(standing) / "deep/file.txt").read_text() == "one"
    assert store.orphans() == []


def test_rows_of_parquet_files_are_counted(store: Store) -> None:
    attempt = attempt_with(store, "one")
    pq.write_table(pa.table({"x": [1, 2, 3]}), attempt.out / "t.parquet")
    assert store.commit(manifest_of(store, attempt)).rows == 3


@pytest.mark.parametrize("damage", ["altered", "resized", "missing"])
def test_damage_is_named(store: Store, damage: str, tmp_path: Path) -> None:
    attempt = attempt_with(store, "one")
    manifest = store.commit(manifest_of(store, attempt))
    assert store.verify(manifest) == []
    path = f"{store.folder(manifest)}/deep/file.txt"
    if damage == "missing":
        store.files.remove(path)
    else:
        store.files.write(path, b"eno" if damage == "altered" else b"longer")
    (problem,) = store.verify(manifest)
    assert path in problem
    with pytest.raises(UserError, match=r"damaged: .*file\.txt.*rlt artifacts remove"):
        Store(str(store), tmp_path / "no copies").intact(manifest)


def test_gc_removes_orphans_and_spares_what_is_leased_or_unfinished(store: Store) -> None:
    done = attempt_with(store, "one", key("d0"))
    store.commit(manifest_of(store, done))
    attempt_with(store, "two", key("d0"))
    attempt_with(store, "three", key("d1"))
    unfinished = store.workspace("unfinished")
    (unfinished.begin("shards", "0") / "x").write_text("x")
    unfinished.commit("shards", "0")
    with Lease(store.files, key("d1")):
        removed = [orphan.path for orphan in store.gc()]
    assert len(removed) == 1 and removed[0].startswith(f"artifacts/evaluation/{key('d0')}/")
    assert unfinished.parts("shards") == ["0"]
    assert len(store.gc()) == 1  # the lease is gone, so is its owner's attempt
    assert [m.ref.key for m in store.manifests()] == [key("d0")]


@pytest.mark.parametrize("event", ["begins", "is committed"])
def test_gc_spares_an_attempt_that_changes_while_it_looks(
    store: Store, event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = attempt_with(store, "one")

    def change(_: Files) -> tuple[dict[str, dict[str, object]], dict[str, str]]:
        if event == "begins":
            attempt_with(store, "two", key("e1"))
        else:
            store.commit(manifest_of(store, attempt))
        return {}, {}

    monkeypatch.setattr(Lease, "read_all", change)
    crashed = [f"artifacts/evaluation/{KEY}/{attempt.id}"] if event == "begins" else []
    assert [orphan.path for orphan in store.orphans()] == crashed


def test_orphans_tell_their_bytes_and_empty_ones_are_found(store: Store) -> None:
    attempt = attempt_with(store, "one")
    empty = store.begin(Ref(kind="evaluation", key=key("e0")))
    assert {orphan.path.split("/")[-1]: orphan.bytes for orphan in store.orphans()} == {
        attempt.id: len("one"),
        empty.id: 0,
    }
    store.abandon(attempt)
    store.abandon(empty)
    assert store.orphans() == [] and store.files.names("artifacts/evaluation") == []


def test_committing_drops_the_workspace_and_keeps_the_lease(store: Store) -> None:
    work = store.workspace(KEY)
    (work.begin("checkpoints", "1") / "x").write_text("x")
    work.commit("checkpoints", "1")
    with Lease(store.files, KEY):
        store.commit(manifest_of(store, attempt_with(store, "one")))
        assert work.parts("checkpoints") == []
        assert KEY in store.working()
    assert store.working() == {}


def test_find_by_unique_beginning_and_by_name(store: Store) -> None:
    for start in ("aaa1", "aab2"):
        store.commit(manifest_of(store, attempt_with(store, "x", key(start))))
    assert store.find("aab").ref.key == key("aab2")
    with pytest.raises(UserError, match="aaa1000000000000, aab2000000000000"):
        store.find("aa")
    with pytest.raises(UserError, match="no artifact"):
        store.find("b")
    store.set_ref("tiny/evaluation[x]@0", Ref(kind="evaluation", key=key("aaa1")))
    assert store.find("tiny/evaluation[x]@0").ref.key == key("aaa1")
    store.set_ref("tiny/evaluation[x]@0", Ref(kind="evaluation", key=key("aab2")))
    assert store.refs() == {"tiny/evaluation[x]@0": Ref(kind="evaluation", key=key("aab2"))}


def test_an_unwritable_store_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = Store(str(tmp_path / "file" / "store"))
    with pytest.raises(UserError, match="cannot be written"):
        store.begin(Ref(kind="model", key=KEY))
    with pytest.raises(UserError, match="cannot be written"):
        store.set_ref("x", Ref(kind="model", key=KEY))


def test_a_store_from_which_nothing_can_be_deleted_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    store.files.write("folder/file", b"")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.unlink", refuse)
    for path in ("folder/file", "folder"):
        with pytest.raises(UserError, match=r"cannot be written.*Read-only"):
            store.files.remove(path)


# ---------------------------------------------------------------- workspaces
def test_a_part_exists_once_committed(store: Store) -> None:
    work = store.workspace("key")
    folder = work.begin("shards", "00001")
    (folder / "part").write_text("half")
    assert work.parts("shards") == []
    work.commit("shards", "00001", rows=3)
    assert work.parts("shards") == ["00001"]
    assert work.metrics("shards")["00001"] == {"rows": 3}
    assert (work.path("shards", "00001") / "part").read_text() == "half"
    work.remove("shards", "00001")
    assert work.parts("shards") == []


def test_a_damaged_part_is_named(store: Store, tmp_path: Path) -> None:
    work = store.workspace("key")
    (work.begin("shards", "1") / "part").write_text("x")
    work.commit("shards", "1")
    (part,) = (path for path in store.files.sizes("work/key") if path.endswith("part"))
    store.files.write(f"work/key/{part}", b"y")
    with pytest.raises(UserError, match="shards/1 is damaged"):
        Store(str(store), tmp_path / "no copies").workspace("key").path("shards", "1")


# ---------------------------------------------------------------- full disks
@pytest.fixture
def full_disk(small_disk: Callable[[Path, str], Path], tmp_path: Path) -> Path:
    """A disk of 1 MiB of which 0.9 are taken."""
    place = small_disk(tmp_path / "disk", "1m")
    (place / "others").write_bytes(bytes(900_000))
    return place


def test_a_full_disk_is_named_and_nothing_is_half_written(full_disk: Path, tmp_path: Path) -> None:
    store, large = Store(str(full_disk / "store")), bytes(300_000)
    (tmp_path / "large").write_bytes(large)
    store.files.write("work/key/state", b"before")
    writes: dict[str, Callable[[], object]] = {
        "create": lambda: store.files.create("refs/x", large),
        "write": lambda: store.files.write("work/key/state", large),
        "swap": lambda: store.files.swap("work/key/state", lambda _: True, large),
        "put": lambda: store.files.put(tmp_path / "large", "artifacts/x"),
    }
    for write in writes.values():
        with pytest.raises(DiskFull, match=f"^disk full: {full_disk}.*Free space") as error:
            write()
        assert "\n" not in str(error.value)
        assert store.files.read("work/key/state") == b"before"
        assert {path.name for path in full_disk.rglob("*") if path.is_file()} <= {
            "others", "state", ".lock",
        }  # fmt: skip
    source = Store(str(tmp_path / "source"))
    attempt = attempt_with(source, "one")
    (attempt.out / "large").write_bytes(large)
    manifest = source.commit(manifest_of(source, attempt))
    with pytest.raises(DiskFull, match=f"disk full: {full_disk}"):
        copy_artifact(source, store, manifest)
    assert store.manifests() == [] and store.working() == {}
    (full_disk / "others").unlink()
    assert copy_artifact(source, store, manifest) and store.verify(manifest) == []
