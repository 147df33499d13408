"""A store that came from somebody else: nothing leads out of it, and one bad item stops nothing."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3_server
from typer.testing import CliRunner

from flows.cli.artifacts import app
from rlt_core.config import Imports
from rlt_core.errors import UserError
from rlt_core.sql.views import connect
from rlt_core.store import FileEntry, Lease, Manifest, Ref, Store
from rlt_core.store.files import DOCUMENT_BYTES, Damaged
from rlt_core.store.manifest import read_manifests
from rlt_core.store.transfer import CopyFailed, copy_artifact, with_inputs
from tests.rlt_core.store.attempts import KEY, attempt_with, committed, key, manifest_of
from tests.rlt_core.store.test_s3_store import answering
from tests.sample_store import commit, score_row

OUTWARD = [
    "../x", "a/../../x", "..", ".", "a/./b", "a//b", "/etc/passwd", "a/", "", "a\\..\\b", "\\\\h",
    "C:x", "a/c:/x", "a\nb", "a\x00b", "a\x1b[2Jb", "a\x9bb", "a\u202eb", "a\u2028b", "x" * 256,
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the user's outside every store."""
    made = tmp_path / "outside"
    (made / KEY / "abcdefabcdef").mkdir(parents=True)
    (made / "precious.json").write_text("precious")
    (made / "file.txt").write_text("one")
    (made / KEY / "abcdefabcdef" / "precious").write_text("precious")
    return made


def contents(place: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }


def rewrite(store: Store, manifest: Manifest, change: Callable[[dict[str, Any]], object]) -> str:
    """Change an artifact's manifest in the store; returns its path."""
    path = manifest.ref.manifests[0]
    document = json.loads(store.files.read(path) or b"")
    change(document)
    store.files.write(path, json.dumps(document).encode())
    return path


def command(store: Store, *arguments: object) -> tuple[int, str]:
    """Exit status and what was shown."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--store", str(store)])
    if isinstance(result.exception, UserError):
        return 2, str(result.exception)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


# ---------------------------------------------------------------- paths
@pytest.mark.parametrize("path", OUTWARD)
def test_a_path_that_may_lead_out_is_refused_everywhere(
    path: str, folder: Store, s3_root: str
) -> None:
    with pytest.raises(ValueError, match="path"):
        FileEntry(path=path, sha256="0" * 64, bytes=0)
    with pytest.raises(ValueError, match="name"):
        Imports(traces={path: "file.jsonl"})
    assert folder.ref(path) is None
    for store in (folder, Store(s3_root)):
        for use in (store.files.read, store.files.remove, store.files.local):
            if path:
                with pytest.raises(Damaged, match="no path inside a store"):
                    use(path)
        with pytest.raises(Damaged, match="no path inside a store"):
            store.set_ref(f"{path}/x" if path else path + "//", Ref(kind="model", key=KEY))


def entry(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "sha256": "0" * 64, "bytes": 1} | more


ELSEWHERE: list[dict[str, Any]] = [
    *({"files": [entry(path)]} for path in OUTWARD[:8]),
    {"attempt": "../../../../outside"}, {"attempt": "x" * 12}, {"attempt": ""},
    {"ref": {"kind": "../..", "key": KEY}}, {"ref": {"kind": "secrets", "key": KEY}},
    {"ref": {"kind": "evaluation", "key": "../../../outside"}},
    {"ref": {"kind": "evaluation", "key": f"{KEY}\n"}}, {"ref": {"kind": "model", "key": KEY}},
    {"ref": {"kind": "evaluation", "key": key("b")}},
    {"inputs": {"model": {"kind": "model", "key": "../x"}}},
    {"seed": 1 << 63}, {"threads": 10**30}, {"files": [entry("a", bytes=1 << 45)]},
    {"started_at": "2026-01-01T00:00:00"}, {"files": [entry("a", bytes=-1)]},
    {"files": [entry("a", sha256="x")]},
    {"files": [entry("a"), entry("a/b")]}, {"files": [entry("a"), entry("a")]},
]  # fmt: skip
"""Changes of the manifest of the artifact KEY."""


def test_manifests_that_lead_elsewhere_are_not_read_pulled_pushed_or_removed(
    store: Store, outside: Path, tmp_path: Path
) -> None:
    good, bad = committed(store, "good", key("a")), {}
    for number, change in enumerate(ELSEWHERE):
        own = committed(store, "bad", f"{number:016}")
        changed = json.loads(json.dumps(change).replace(KEY, own.ref.key))
        bad[rewrite(store, own, lambda document, new=changed: document.update(new))] = own
    before, target = contents(outside), Store(str(tmp_path / "target"))
    manifests, problems = read_manifests(store.files)
    assert list(manifests.values()) == [good] and problems.keys() == bad.keys()
    status, shown = command(target, "pull", "--all", "--refs", "--from", store)
    assert status == 1 and f"1 artifacts copied (4 bytes), 0 were there, {len(bad)} f" in shown
    keys = [manifest.ref.key for manifest in bad.values()]
    status, shown = command(store, "push", *keys, key("a"), "--to", target)
    assert status == 1 and f"0 artifacts copied (0 bytes), 1 were there, {len(bad)} f" in shown
    assert {command(store, "remove", own)[0] for own in keys[-3:]} == {2}
    assert command(store, "gc")[0] == 0
    assert target.manifests() == store.manifests() == [good]
    assert contents(outside) == before
    assert all(store.files.sizes(store.folder(each)) for each in bad.values()), "they are kept"
    assert {each.name for each in tmp_path.iterdir()} <= {
        "outside", "target", "cache", "a store", "store",
    }  # fmt: skip


@pytest.mark.parametrize("store_root", ["s3"], indirect=True)
def test_keys_of_a_bucket_that_are_no_paths_are_left_alone(
    store_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = store_root.removeprefix(f"s3://{s3_server.BUCKET}/")
    names = ["good.json", "../../x.json", "a/../../../b.json", "a&#x9b;2J.json", "a\\..\\b.json"]
    found = "".join(
        f"<Contents><Key>{prefix}/refs/{name}</Key><Size>1</Size>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for name in names
    )
    body = (
        '<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>'
        f"{found}</ListBucketResult>"
    )
    with answering(200, body) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert Store(store_root).files.walk("refs") == ["good.json"]


# ---------------------------------------------------------------- links
@pytest.mark.parametrize("level", ["artifacts", "kind", "key", "attempt", "data", "work", "lease"])
def test_gc_and_remove_delete_a_link_at_most(level: str, folder: Store, outside: Path) -> None:
    manifest = committed(folder, "one")
    base = {
        "artifacts": "artifacts", "kind": "artifacts/scores", "key": f"artifacts/scores/{KEY}",
        "attempt": f"artifacts/evaluation/{KEY}/abcdefabcdef", "work": f"work/{KEY}",
        "data": f"{folder.folder(manifest)}/linked", "lease": f"work/{KEY}/lease.json",
    }[level]  # fmt: skip
    place = Path(str(folder), base)
    if level == "artifacts":
        place.rename(place.with_name("moved"))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to({"key": outside / KEY, "lease": outside / "precious.json"}.get(level, outside))
    before = contents(outside)
    for run in (folder.gc, lambda: folder.remove(manifest.ref)):
        try:
            run()
        except Damaged as error:
            assert "link" in str(error)
    assert contents(outside) == before
    if level == "attempt":
        assert not place.is_symlink()


@pytest.mark.parametrize("level", ["file", "folder of it", "attempt", "key", "kind", "unnamed"])
def test_an_artifact_behind_a_link_is_neither_read_nor_pushed(
    level: str, folder: Store, outside: Path, tmp_path: Path
) -> None:
    manifest = committed(folder, "one")
    data = Path(str(folder), folder.folder(manifest))
    place = {
        "file": data / "deep/file.txt", "folder of it": data / "deep", "attempt": data,
        "key": data.parent, "kind": data.parent.parent, "unnamed": data / "more",
    }[level]  # fmt: skip
    if place.exists():
        place.rename(outside / "moved")
    place.symlink_to(outside / "moved" if level != "unnamed" else outside / "file.txt")
    target = Store(str(tmp_path / "target"))
    for read in (folder.intact, lambda one: copy_artifact(folder, target, one)):
        with pytest.raises((UserError, CopyFailed), match="link"):
            read(manifest)
    if level != "kind":
        status, shown = command(folder, "verify")
        assert status == 1 and "link" in shown
    assert target.manifests() == []


@pytest.mark.parametrize("level", [0, 1, 2])
def test_sql_follows_no_link(level: int, folder: Store, tmp_path: Path) -> None:
    made = commit(folder, "trace-scoring[a]", {"scores": [score_row(1, -1.0)]})
    path = Path(folder.data_path(made), "scores.parquet")
    place = [path, *path.parents][level]
    place.rename(tmp_path / "moved")
    place.symlink_to(tmp_path / "moved")
    with connect(folder) as connection, pytest.raises(Exception, match="no link is followed"):
        connection.sql("select * from scores").fetchall()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_not_read_as_one(kind: str, folder: Store, outside: Path) -> None:
    good = committed(folder, "x", key("a"))
    bad = committed(folder, "y")
    folder.set_ref("bad", bad.ref)
    for path in (bad.ref.manifests[0], "refs/bad.json", f"work/{KEY}/node.txt"):
        place = Path(str(folder), path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        if kind == "link":
            place.symlink_to(outside / "precious.json")
        elif kind == "pipe":
            os.mkfifo(place)
        else:
            place.mkdir()
    assert folder.manifests() == [good] and folder.refs() == {} and folder.unfinished() == {}
    assert folder.gc() == [] and folder.files.sizes(folder.folder(bad))
    with pytest.raises(Damaged):
        folder.find(KEY)


def nest(place: Path, name: str, depth: int) -> None:
    """Make folders within each other, by descriptors: their path is longer than a path may be."""
    place.mkdir(parents=True, exist_ok=True)
    above = os.open(place, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=above)
        below = os.open(name, os.O_RDONLY, dir_fd=above)
        os.close(above)
        above = below
    os.close(above)


PLANTS: dict[str, Callable[[Path], object]] = {
    "pipe": lambda place: os.mkfifo(place),
    "deep folder": lambda place: nest(place, "d", 1200),
    "long path": lambda place: nest(place, "d" * 255, 18),
    "huge file": lambda place: os.truncate(os.open(place, os.O_CREAT | os.O_RDWR), 1 << 36),
    "huge document": lambda place: os.truncate(
        os.open(f"{place}.json", os.O_CREAT | os.O_RDWR), 1 << 36
    ),
    "sealed folder": lambda place: place.mkdir(mode=0),
}  # fmt: skip


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("level", ["", "refs", "work", "artifacts", "artifacts/scores", "data"])
def test_what_stands_in_the_way_hangs_nothing_and_stops_nothing_else(
    plant: str, level: str, folder: Store, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: subprocess.run(["rm", "-rf", tmp_path], check=True))
    good, other = committed(folder, "x", key("a")), committed(folder, "y")
    place = Path(folder.data_path(other)) if level == "data" else Path(str(folder), level)
    place.mkdir(parents=True, exist_ok=True)
    PLANTS[plant](place / "0123456789abcdef")
    for arguments in (["list"], ["show", key("a")], ["gc"], ["verify", key("a")]):
        assert command(folder, *arguments)[0] == 0, arguments
    assert good in folder.manifests() and folder.refs() == {} and folder.unfinished() == {}
    target = Store(str(tmp_path / "target"))
    command(target, "pull", "--all", "--refs", "--from", folder)
    assert good in target.manifests()


@pytest.mark.parametrize("at", [".lock", "refs/x.json", "attempt", "artifacts/evaluation/KEY"])
def test_a_pipe_in_the_target_costs_what_it_stands_for(
    at: str, folder: Store, tmp_path: Path
) -> None:
    other, good = committed(folder, "y"), committed(folder, "x", key("a"))
    for name in ("x", "y"):
        folder.set_ref(name, good.ref)
    target = Store(str(tmp_path / "target"))
    place = f"{folder.folder(other)}/more" if at == "attempt" else at.replace("KEY", KEY)
    full = Path(str(target), place)
    full.parent.mkdir(parents=True)
    os.mkfifo(full)
    status, shown = command(target, "pull", "--all", "--refs", "--from", folder)
    assert good in target.manifests() and target.ref("y") == good.ref
    assert status == (at in ("attempt", "artifacts/evaluation/KEY")) == (str(full) in shown)


def test_a_stage_that_leaves_a_link_fails(folder: Store, outside: Path) -> None:
    attempt = attempt_with(folder, "one")
    (attempt.out / "link").symlink_to(outside / "file.txt")
    with pytest.raises(UserError, match="link"):
        folder.describe(attempt)
    (attempt.out / "link").unlink()
    (attempt.out / "new\nline").write_text("")
    with pytest.raises(UserError, match="rename"):
        folder.describe(attempt)


# ---------------------------------------------------------------- one bad item
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "newer": lambda data: json.dumps(json.loads(data) | {"schema_version": 2}).encode(),
    "newer, with more": lambda data: json.dumps(
        json.loads(data) | {"schema_version": 99, "more": [1]}
    ).encode(),
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "not text": lambda _: b"\x00\xff",
    "another type": lambda _: b"[]",
    "deep": lambda _: b"[" * 100_000,
    "half a character": lambda data: data.replace(b'"tiny"', b'"\\ud800"'),
}


def test_manifests_that_cannot_be_read_stop_nothing_else(store: Store) -> None:
    good, bad = committed(store, "x", key("a")), {}
    for number, (name, damage) in enumerate(DAMAGE.items()):
        own = committed(store, "y", f"{number:016}", model=good)
        path = own.ref.manifests[0]
        store.files.write(path, damage(store.files.read(path) or b""))
        bad[name] = own
    for arguments in (["list", "--json"], ["show", key("a")], ["lineage", key("a")]):
        status, shown = command(store, *arguments)
        assert status == 0 and key("a") in shown
    status, shown = command(store, "verify")
    assert status == 1 and f"1 of {1 + len(bad)} artifacts are intact" in shown
    assert shown.count("newer rlt") == 2 and "delete" not in shown
    for name, own in bad.items():
        (line,) = [each for each in shown.splitlines() if own.ref.manifests[0] in each]
        assert ("newer rlt" in line) == ("newer" in name)
        assert command(store, "verify", own.ref.key)[0] == 1
        assert command(store, "show", own.ref.key) == (2, line)
        with pytest.raises(Damaged, match=own.ref.manifests[0]):
            store.manifest("evaluation", own.ref.key)
    attempt_with(store, "left by a crash", key("a"))
    assert [orphan.path.split("/")[2] for orphan in store.gc()] == [key("a")]
    assert all(store.files.sizes(store.folder(own)) for own in bad.values())


def test_gc_keeps_what_an_unreadable_manifest_is_about(store: Store) -> None:
    attempt = attempt_with(store, "an input that has no manifest", key("b"))
    moved = committed(store, "x", KEY)
    ref = {"model": {"kind": "evaluation", "key": key("b")}}
    rewrite(store, moved, lambda document: document.update(schema_version=9, inputs=ref))
    data = store.files.read(moved.ref.manifests[0]) or b""
    store.files.remove(moved.ref.manifests[0])
    store.files.write(f"artifacts/model/{key('c')}.json", data)  # by a wrong copy
    store.files.write(f"artifacts/of-a-newer-rlt/{KEY}/abcdefabcdef/file", b"x")
    store.files.write("artifacts/evaluation/notes/by hand/file", b"x")
    assert store.gc() == []
    assert store.files.sizes(store.folder(moved))
    assert attempt.out.exists()


def test_a_document_of_any_size_is_not_read_whole(store: Store) -> None:
    good, (path, _) = committed(store, "x", key("a")), Ref(kind="model", key=KEY).manifests
    for name in ("refs/bad.json", path, f"work/{key('c')}/node.txt", f"work/{KEY}/lease.json"):
        store.files.write(name, b" " * (DOCUMENT_BYTES + 1))
        with pytest.raises(Damaged, match=r"cannot be read: it has more than 16 MiB"):
            store.files.read(name)
    assert store.manifests() == [good] and store.refs() == store.unfinished() == {}
    assert store.working() == {} and store.gc() == []


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[]", b'{"kind": "../x", "key": "y"}'])
def test_damaged_refs_leases_and_node_files_are_warnings(
    content: bytes, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = committed(store, "x", key("a"))
    attempt = attempt_with(store, "running", key("b"))
    store.set_ref("good", manifest.ref)
    store.files.write("refs/bad.json", content)
    store.files.write(f"work/{key('b')}/lease.json", content)
    store.files.write(f"work/{key('c')}/node.txt", b"\xff\xfe")
    assert store.refs() == {"good": manifest.ref} and store.ref("bad") is None
    assert store.working() == {} and store.unfinished() == {}
    for name in ("refs/bad.json", f"{key('b')}/lease.json", f"{key('c')}/node.txt"):
        assert name in caplog.text
    assert store.gc() == [] and attempt.out.exists(), "kept: its holder may be alive"
    assert Lease.holder(store.files, key("b")) is None
    with Lease(store.files, key("b"), "mine"):
        assert store.working()[key("b")]["name"] == "mine"
    store.set_ref("bad", manifest.ref)
    assert store.find("bad") == manifest


@pytest.mark.parametrize("renewed_at", [4102444800.0, 1e300, float("inf"), "NaN"])
def test_a_lease_from_the_future_expires(renewed_at: object, store: Store) -> None:
    lease = {"id": "x", "host": "elsewhere", "pid": 1, "started": None, "renewed_at": renewed_at}
    store.files.write(f"work/{KEY}/lease.json", json.dumps(lease).encode())
    assert store.working() == {}
    with Lease(store.files, KEY, "mine"):
        assert store.working()[KEY]["name"] == "mine"


def test_a_damaged_part_says_which_and_how_to_go_on(store: Store) -> None:
    work = store.workspace("key")
    (work.begin("shards", "0") / "x").write_text("x")
    work.commit("shards", "0", loss=float("nan"))
    path = "work/key/shards/0/manifest.json"
    data = store.files.read(path) or b""
    for bad in (b"{", data.replace(b'"path":"x"', b'"path":"../../../x"')):
        store.files.write(path, bad)
        for use in (work.parts, lambda group: work.path(group, "0")):
            with pytest.raises(UserError, match=r"shards/0/manifest.json is damaged.*Delete .*"):
                use("shards")


def test_metrics_that_are_no_numbers_stay_readable(store: Store) -> None:
    attempt = attempt_with(store, "x")
    metrics = {"nan": float("nan"), "inf": float("inf")}
    store.commit(manifest_of(store, attempt).model_copy(update={"metrics": metrics}))
    (found,) = store.manifests()
    assert str(found.metrics) == "{'nan': nan, 'inf': inf}"


def test_a_circle_of_inputs_ends(store: Store) -> None:
    one = committed(store, "x", key("a"))
    two = committed(store, "y", key("b"), model=one)
    ref = {"model": two.ref.model_dump()}
    rewrite(store, one, lambda document: document.update(inputs=ref))
    ordered, gone = with_inputs(store, store.manifests())
    assert {each.ref.key for each in ordered} == {key("a"), key("b")} and gone == []
    assert command(store, "lineage", key("a"))[0] == 0
