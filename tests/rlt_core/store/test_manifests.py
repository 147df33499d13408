"""All manifests of a store: exactly the committed artifacts, each read once from S3."""

import pytest

from rlt_core.errors import UserError
from rlt_core.store import Ref, Store, manifest
from tests.rlt_core.store.attempts import committed, key


@pytest.fixture
def store(store_root: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(manifest, "SETTLED_S", -60.0)  # a manifest of this moment is settled
    return Store(store_root)


def attempts(store: Store) -> dict[str, str]:
    return {manifest.ref.key: manifest.attempt for manifest in store.manifests()}


@pytest.mark.parametrize("store_root", ["s3"], indirect=True)
def test_a_manifest_on_s3_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {one: committed(store, one, one) for one in (key("a1"), key("b2"), key("c3"))}
    seen: list[str] = []
    read = store.files.read

    def spy(path: str) -> bytes | None:
        seen.append(path)
        return read(path)

    monkeypatch.setattr(store.files, "read", spy)
    assert store.manifests() == list(made.values())
    assert sorted(seen) == [f"artifacts/evaluation/{one}.json" for one in made]
    made[key("d4")] = committed(store, "d", key("d4"))
    seen.clear()
    assert store.manifests() == list(made.values())
    assert seen == [f"artifacts/evaluation/{key('d4')}.json"]
    assert store.files.manifest_copies
    copies = sorted(store.files.manifest_copies.iterdir())
    assert len(copies) == 4
    copies[0].write_bytes(b"{}")
    copies[1].unlink()
    seen.clear()
    assert store.manifests() == list(made.values())
    assert len(seen) == 2, "a damaged and a missing copy are read again"
    store.remove(made[key("d4")].ref)
    store.manifests()
    assert len(list(store.files.manifest_copies.iterdir())) == 3


def test_a_removed_artifact_disappears_and_one_made_again_is_read_again(store: Store) -> None:
    for start in ("a1", "b2"):
        committed(store, "x", key(start))
    before = attempts(store)
    store.remove(Ref(kind="evaluation", key=key("a1")))
    assert attempts(store) == {key("b2"): before[key("b2")]}
    again = committed(store, "x", key("a1"))
    assert again.attempt != before[key("a1")]
    assert attempts(store) == {key("a1"): again.attempt, key("b2"): before[key("b2")]}
    store.files.remove(f"artifacts/evaluation/{key('b2')}.json")  # by hand
    assert attempts(store) == {key("a1"): again.attempt}


def test_stores_with_manifests_in_the_artifacts_folders_are_read(store: Store) -> None:
    old, new = committed(store, "x", key("a1")), committed(store, "y", key("b2"))
    data = store.files.read(f"artifacts/evaluation/{key('a1')}.json")
    assert data is not None
    store.files.remove(f"artifacts/evaluation/{key('a1')}.json")
    store.files.write(f"artifacts/evaluation/{key('a1')}/manifest.json", data)
    assert store.manifests("evaluation") == store.manifests() == [old, new]
    assert store.manifests("model") == []
    assert store.manifest("evaluation", key("a1")) == store.find(key("a1")) == old
    assert store.gc() == []
    store.remove(old.ref)
    assert store.manifests() == [new]
    with pytest.raises(UserError, match="no artifact"):
        store.find(key("a1"))
