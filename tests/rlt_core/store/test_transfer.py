"""Copies between stores: whole, verified, resumable, between any two kinds of store."""

import uuid
from pathlib import Path

import pytest
import s3_server

from rlt_core.errors import UserError
from rlt_core.store import Lease, Ref, Store
from rlt_core.store.transfer import CopyFailed, copy_artifact, with_inputs
from tests.rlt_core.store.attempts import KEY, attempt_with, committed, key, manifest_of


@pytest.fixture
def source(store_root: str) -> Store:
    return Store(store_root)


@pytest.fixture(params=["local", "s3"])
def target(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "target"))
    request.getfixturevalue("s3_access")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Store(f"s3://{s3_server.BUCKET}/{uuid.uuid4().hex}")


def test_a_copy_is_the_artifact(source: Store, target: Store) -> None:
    manifest = committed(source, "one")
    moved: list[int] = []
    assert copy_artifact(source, target, manifest, moved.append)
    assert sum(moved) == manifest.bytes
    assert target.manifests() == [manifest]
    assert (target.intact(manifest) / "deep/file.txt").read_text() == "one"
    assert target.orphans() == [] and target.working() == {}
    assert not copy_artifact(source, target, manifest)


def test_an_interrupted_copy_goes_on_and_is_nothing_before_its_end(
    source: Store, target: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = attempt_with(source, "one")
    for name in "abc":
        (attempt.out / name).write_text(name)
    manifest = source.commit(manifest_of(source, attempt))
    copier = target.files if source.files.is_local else source.files
    name = "put" if source.files.is_local else "fetch"
    move, paths = getattr(copier, name), []

    def failing(*arguments: object) -> None:
        path = next(one for one in arguments if isinstance(one, str))
        paths.append(path.rsplit("/", 1)[-1])
        if paths[-1] == "c" and paths.count("c") == 1:
            raise UserError("interrupted")
        move(*arguments)

    monkeypatch.setattr(copier, name, failing)
    with pytest.raises(UserError, match="interrupted"):
        copy_artifact(source, target, manifest)
    assert target.manifests() == []
    assert copy_artifact(source, target, manifest)
    assert sorted(paths) == ["a", "b", "c", "c", "file.txt"]
    assert target.verify(manifest) == []


def test_a_file_that_arrived_damaged_is_copied_again(source: Store, target: Store) -> None:
    manifest = committed(source, "one")
    target.files.write(f"{target.folder(manifest)}/deep/file.txt", b"eno")
    assert copy_artifact(source, target, manifest)
    assert target.verify(manifest) == []


@pytest.mark.parametrize("damage", [b"eno", b"longer", None])
def test_a_damaged_source_is_not_copied(source: Store, target: Store, damage: bytes | None) -> None:
    manifest = committed(source, "one")
    path = f"{source.folder(manifest)}/deep/file.txt"
    if damage is None:
        source.files.remove(path)
    else:
        source.files.write(path, damage)
    with pytest.raises(CopyFailed, match=rf"{KEY}.*deep/file\.txt"):
        copy_artifact(source, target, manifest)
    assert target.manifests() == []
    assert target.working() == {}


def test_a_copy_waits_for_who_works_on_the_key(source: Store, target: Store) -> None:
    class GaveUp(Exception):
        pass

    def give_up(lease: dict[str, object]) -> None:
        raise GaveUp(lease["name"])

    manifest = committed(source, "one")
    with Lease(target.files, KEY, "a run"), pytest.raises(GaveUp, match="a run"):
        copy_artifact(source, target, manifest, waiting=give_up)


def test_inputs_come_first_and_missing_ones_are_named(source: Store) -> None:
    first = committed(source, "1", key("f1"))
    second = committed(source, "2", key("f2"), model=first)
    third = committed(source, "3", key("f3"), traces=second, model=first)
    committed(source, "4", key("f4"))
    ordered, gone = with_inputs(source, [third, second])
    assert [manifest.ref.key for manifest in ordered] == [key("f1"), key("f2"), key("f3")]
    assert gone == []
    source.remove(Ref(kind="evaluation", key=key("f1")))
    ordered, (line,) = with_inputs(source, [third])
    assert [manifest.ref.key for manifest in ordered] == [key("f2"), key("f3")]
    assert f"model ({key('f1')})" in line
