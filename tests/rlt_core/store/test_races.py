"""Many processes and gc on one store: no error, and nothing that was committed is lost."""

import json
import multiprocessing
import os
import random
import time
import traceback
from pathlib import Path

import pytest

from rlt_core.store import Lease, Ref, Store
from rlt_core.store import lease as leases
from rlt_core.store.files import LEFT_S
from tests.rlt_core.store.attempts import attempt_with, committed, key, manifest_of

PROCESSES = 6
SECONDS = 1.0
KEYS = [key(start) for start in "abc"]


def compute(store: Store, own: str, chance: random.Random) -> None:
    with Lease(store.files, own, "node"):
        if store.manifest("evaluation", own):
            return
        store.files.write(f"work/{own}/node.txt", b"node")
        attempt, work = attempt_with(store, own, own), store.workspace(own)
        for part in set("01") - set(work.parts("shards")):
            (work.begin("shards", part) / "x").write_text("x")
            work.commit("shards", part)
        if chance.random() < 0.5:
            store.abandon(attempt)
            return
        assert store.commit(manifest_of(store, attempt)).attempt == attempt.id
        assert (store.intact(store.find(own)) / "deep/file.txt").read_text() == own


def name(store: Store, own: str, chance: random.Random) -> None:
    store.set_ref(f"tiny/{own}", Ref(kind="evaluation", key=own))
    assert store.ref(f"tiny/{own}") and f"tiny/{own}" in store.refs()
    store.files.remove(f"refs/other/{own}.json")
    store.files.prune("refs/other")
    store.set_ref(f"other/{own}", Ref(kind="evaluation", key=own))


def look(store: Store, own: str, chance: random.Random) -> None:
    for manifest in store.manifests():
        store.verify(manifest)
    store.working(), store.unfinished(), store.orphans()


def clean(store: Store, own: str, chance: random.Random) -> None:
    store.gc()
    if chance.random() < 0.3:
        store.remove(Ref(kind="evaluation", key=own))


def stress(root: str, number: int, counts: object) -> None:
    done, chance, until = 0, random.Random(number), time.monotonic() + SECONDS
    try:
        while time.monotonic() < until:
            step = chance.choice([compute, compute, name, look, clean])
            step(Store(root), chance.choice(KEYS), chance)
            done += 1
        counts.put(done)
    except BaseException:
        counts.put(traceback.format_exc())


def test_many_runs_and_gc_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = time.sleep
    monkeypatch.setattr(leases.time, "sleep", lambda _: sleep(0.001))
    root, context = str(tmp_path / "store"), multiprocessing.get_context("fork")
    counts = context.Queue()
    processes = [
        context.Process(target=stress, args=(root, number, counts)) for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    found = [counts.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert [each for each in found if isinstance(each, str)] == []
    assert sum(found) > 20
    store = Store(root)
    assert store.working() == {}
    store.gc()
    assert all(store.verify(manifest) == [] for manifest in store.manifests())
    assert store.orphans() == []
    hidden = [path for path in Path(root).rglob(".*") if path.name != ".lock"]
    assert hidden == []


def test_gc_leaves_alone_what_is_leased_after_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "store"))
    crashed = attempt_with(store, "half", KEYS[0])
    done = committed(store, "x", KEYS[1])
    (store.workspace(KEYS[1]).begin("shards", "0") / "x").write_text("x")
    look = Store.orphans
    with Lease(store.files, KEYS[0]), Lease(store.files, KEYS[1]):
        monkeypatch.setattr(Lease, "read_all", lambda _: ({}, {}))
        assert len(look(store)) == 2
        assert store.gc() == []
    removed = look(store)
    monkeypatch.setattr(Store, "orphans", lambda _: removed)
    store.remove(done.ref)
    (store.workspace(KEYS[1]).begin("shards", "0") / "x").write_text("x")
    assert [orphan.ref.key for orphan in store.gc()] == [KEYS[0]]
    assert not crashed.out.exists() and store.files.names(f"work/{KEYS[1]}") == ["shards"]


def test_gc_ends_the_leases_of_dead_holders_and_keeps_their_work(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    lease = {"id": "x", "host": "elsewhere", "pid": 1, "renewed_at": 0}
    for own in KEYS[:2]:
        store.files.write(f"work/{own}/lease.json", json.dumps(lease).encode())
    store.files.write(f"work/{KEYS[1]}/node.txt", b"node")
    with Lease(store.files, KEYS[2]):
        assert store.gc() == []
        assert list(store.working()) == [KEYS[2]]
    assert store.files.walk("work") == [f"{KEYS[1]}/node.txt"]


def test_temporary_files_of_a_crash_are_collected_once_old(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    manifest = committed(store, "x", KEYS[0])
    store.set_ref("tiny/x", manifest.ref)
    places = [
        "refs/tiny", "artifacts/evaluation", store.folder(manifest), "work/0123/shards/0", "",
    ]  # fmt: skip
    names = [f".{'0' * 32}", f".x.json.{'f' * 32}", ".keep", "0" * 32]
    paths = [Path(str(store), place, name) for place in places for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    assert store.gc() == []
    old = time.time() - LEFT_S - 60
    for path in paths:
        os.utime(path, (old, old))
    assert sum(orphan.bytes for orphan in store.gc()) == 4 * 2 * len(places)
    assert [path.exists() for path in paths] == [False, False, True, True] * len(places)
    assert store.manifests() == [manifest] and store.verify(manifest) == []
