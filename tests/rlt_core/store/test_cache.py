"""Local copies of files on S3: bounded, never wrong, never removed while a process uses them."""

import multiprocessing
import os
from pathlib import Path

import pytest

from rlt_core.errors import UserError
from rlt_core.store import Manifest, Store
from rlt_core.store.cache import Cache
from tests.rlt_core.store.attempts import attempt_with, committed, key, manifest_of

FILE = "deep/file.txt"


def filled(home: Path, *ages: int) -> list[Path]:
    """Copies of 100 bytes each, last used so many seconds ago."""
    files = []
    for number, age in enumerate(ages):
        path = home / "store" / "files" / "artifacts" / str(number) / "x"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * 100)
        os.utime(path, (1e9 - age, 1e9 - age))
        files.append(path)
    return files


def test_the_least_recently_used_file_is_evicted_first(tmp_path: Path) -> None:
    old, new, oldest = filled(tmp_path, 20, 10, 30)
    cache = Cache(tmp_path)
    assert cache.trim(300).files == 0
    assert cache.trim(250).files == 1
    assert [path.exists() for path in (oldest, old, new)] == [False, True, True]
    assert cache.trim(100).bytes == 100
    assert (cache.usage().files, new.exists()) == (1, True)


def _use(home: str, folder: str, used: object, done: object) -> None:
    Cache(Path(home)).use(Path(folder))
    used.set()
    done.wait()
    os._exit(1)  # without cleaning up, as a killed process ends


def test_files_of_a_running_process_stay_until_it_has_ended(tmp_path: Path) -> None:
    mine, others, unused = filled(tmp_path, 30, 20, 10)
    context = multiprocessing.get_context("spawn")
    used, done = context.Event(), context.Event()
    child = context.Process(target=_use, args=(str(tmp_path), str(others.parent), used, done))
    child.start()
    assert used.wait(60)
    Cache(tmp_path).use(mine.parent)
    Cache(tmp_path).trim(0)
    assert [path.exists() for path in (mine, others, unused)] == [True, True, False]
    done.set()
    child.join()
    Cache(tmp_path).trim(0)
    assert [path.exists() for path in (mine, others)] == [True, False]
    assert len(list((tmp_path / "in-use").iterdir())) == 1


def test_staged_files_are_not_part_of_the_cache(tmp_path: Path) -> None:
    staged = tmp_path / "store" / "staging" / "artifacts" / "x"
    staged.parent.mkdir(parents=True)
    staged.write_bytes(b"x" * 100)
    cache = Cache(tmp_path)
    assert cache.usage().files == 0
    cache.trim(0)
    assert staged.exists()


@pytest.mark.parametrize("given", ["many", "-1", "nan", "inf"])
def test_a_bound_that_is_no_size_is_refused(
    tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLT_CACHE_GB", given)
    with pytest.raises(UserError, match="RLT_CACHE_GB"):
        Cache(tmp_path).trim()


# ---------------------------------------------------------------- the cache of a store on S3
def other_machine(store_root: str, tmp_path: Path) -> Store:
    return Store(store_root, tmp_path / "other machine")


def copies(home: Path) -> list[Path]:
    return [path for path in home.glob("*/files/**/*") if path.is_file()]


@pytest.mark.parametrize("store_root", ["s3"], indirect=True)
def test_a_commit_leaves_a_copy_and_nothing_staged(store_root: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    store = Store(store_root, home)
    manifest = committed(store, "one")
    assert [path.name for path in copies(home)] == ["file.txt"]
    assert [path for path in home.glob("*/staging/**/*") if path.is_file()] == []
    store.files.fs.rm_file(f"{store.data_path(manifest)}/{FILE}")
    assert (store.intact(manifest) / FILE).read_text() == "one"  # from the copy


@pytest.mark.parametrize("store_root", ["s3"], indirect=True)
@pytest.mark.parametrize("damage", [b"eno", b"longer", b""])
def test_a_damaged_copy_is_fetched_again(store_root: str, tmp_path: Path, damage: bytes) -> None:
    manifest = committed(Store(store_root), "one")
    store = other_machine(store_root, tmp_path)
    (store.intact(manifest) / FILE).write_bytes(damage)
    assert store.verify(manifest) == []
    assert (store.intact(manifest) / FILE).read_text() == "one"
    work = store.workspace("key")
    (work.begin("shards", "0") / "part").write_text("one")
    work.commit("shards", "0")
    (work.path("shards", "0") / "part").write_bytes(damage)
    assert (work.path("shards", "0") / "part").read_text() == "one"


@pytest.mark.parametrize("store_root", ["s3"], indirect=True)
def test_a_bound_of_nothing_keeps_what_is_used_and_drops_the_rest(
    store_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLT_CACHE_GB", "0")
    home = tmp_path / "home"
    store = Store(store_root, home)
    first, second = committed(store, "one", key("a")), committed(store, "two", key("b"))
    assert copies(home) == []
    attempt = attempt_with(store, "three", key("c"))
    folder = store.intact(first)
    assert (store.intact(second) / FILE).read_text() == "two"
    assert (folder / FILE).read_text() == "one"
    assert (attempt.out / FILE).exists()
    store.commit(manifest_of(store, attempt))
    assert sorted(path.read_text() for path in copies(home)) == ["one", "two"]


def _fetch(root: str, home: str, manifest: str, start: object, results: object) -> None:
    store, fetched = Store(root, Path(home)), []
    plain = store.files.fetch
    store.files.fetch = lambda path, *more: (fetched.append(path), plain(path, *more))
    start.wait()
    folder = store.intact(Manifest.model_validate_json(manifest))
    results.put((len((folder / "large").read_bytes()), len(fetched)))


@pytest.mark.parametrize("store_root", ["s3"], indirect=True)
def test_processes_that_want_the_same_files_fetch_each_once(
    store_root: str, tmp_path: Path
) -> None:
    store = Store(store_root)
    attempt = attempt_with(store, "one")
    size = 20_000_000
    (attempt.out / "large").write_bytes(os.urandom(size))
    manifest = store.commit(manifest_of(store, attempt)).model_dump_json()
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    home = tmp_path / "shared"
    arguments = (store_root, str(home), manifest, start, results)
    children = [context.Process(target=_fetch, args=arguments) for _ in range(2)]
    for child in children:
        child.start()
    sizes, fetched = zip(*(results.get(timeout=120) for _ in children), strict=True)
    assert sizes == (size,) * 2
    assert sum(fetched) == 2  # the GPUs of a machine do not each bring a checkpoint of their own
    for child in children:
        child.join()
    assert sorted(path.name for path in copies(home)) == ["file.txt", "large"]
