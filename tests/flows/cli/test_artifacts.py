"""`rlt artifacts`: what it lists, follows, checks and deletes."""

import json

import pytest

from flows.cli import artifacts
from flows.cli.artifacts import app
from rlt_core.errors import UserError
from rlt_core.store import Ref, Store
from tests.flows.conftest import invoke
from tests.sample_store import commit, sample_run, score_row


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


def run(store, *arguments, code=0):
    return invoke(app, *arguments, "--store", store, code=code).stdout


def test_list_names_every_artifact(store):
    made = sample_run(store, seeds=(0,), ranks=1)
    shown = run(store, "list")
    listed = json.loads(run(store, "list", "--json"))
    assert {one["key"] for one in listed} == {manifest.ref.key for manifest in made.values()}
    assert all(manifest.ref.key in shown for manifest in made.values())
    assert f"{len(made)} artifacts" in shown
    models = json.loads(run(store, "list", "--kind", "dataset", "--json"))
    assert [one["label"] for one in models] == ["dataset-prep"]


def test_a_long_table_is_cut_and_counts_all(store, monkeypatch):
    made = [commit(store, f"evaluation[{n}]", {}) for n in range(4)]
    monkeypatch.setattr(artifacts, "TABLE_ROWS", 2)
    shown = run(store, "list")
    assert sum(one.ref.key in shown for one in made) == 2
    assert "2 older ones" in shown and "4 artifacts" in shown
    assert len(json.loads(run(store, "list", "--json"))) == 4
    assert "0 artifacts, 0 bytes" in run(store, "list", "--kind", "scores")


def test_show_takes_the_beginning_of_a_key_or_a_name(store):
    manifest = commit(store, "trace-scoring[a]", {"scores": [score_row(1, -1.0)]}, seed=3)
    store.set_ref("tiny/a", manifest.ref)
    for name in (manifest.ref.key, manifest.ref.key[:6], "tiny/a"):
        shown = run(store, "show", name)
        assert "trace-scoring[a]@3" in shown
        assert "learning_rate: " in shown and "names: tiny/a" in shown
        assert "scores.parquet" in shown and "rows: 1" in shown
        assert json.loads(run(store, "show", name, "--json"))["ref"]["key"] == manifest.ref.key
    with pytest.raises(UserError, match="no artifact"):
        run(store, "show", "zzzz")


def test_lineage_reaches_the_first_inputs_and_names_what_is_gone(store):
    made = sample_run(store, seeds=(0,), ranks=0)
    scored = made["trace-scoring[rlt-held-out]@0"]
    shown = run(store, "lineage", scored.ref.key)
    for name in ("trace-generation[rlt-held-out]", "teacher-grpo", "teacher-sft", "dataset-prep"):
        assert name in shown
    ancestors = json.loads(run(store, "lineage", scored.ref.key, "--json"))
    assert ancestors[0]["key"] == scored.ref.key
    assert len({one["key"] for one in ancestors}) == len(ancestors) == 6
    store.remove(made["base-model"].ref)
    assert "no longer in the store" in run(store, "lineage", scored.ref.key)


def test_verify_names_an_altered_and_a_missing_file(store):
    good = commit(store, "trace-scoring[a]", {"scores": [score_row(1, -1.0)]})
    altered = commit(store, "trace-scoring[b]", {"scores": [score_row(1, -2.0)]})
    missing = commit(store, "trace-scoring[c]", {"scores": [score_row(1, -3.0)]})
    assert "3 of 3 artifacts are intact" in run(store, "verify")
    file = store.intact(altered) / "scores.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    gone = store.intact(missing) / "scores.parquet"
    gone.unlink()
    shown = run(store, "verify", code=1)
    assert f"{file}: altered" in shown
    assert f"{gone}: missing" in shown
    assert f"rlt artifacts remove {altered.ref.key}" in shown
    assert "1 of 3 artifacts are intact" in shown
    assert "1 of 1" in run(store, "verify", good.ref.key)
    assert "0 of 1" in run(store, "verify", altered.ref.key[:8], code=1)


def test_remove_makes_the_artifact_a_miss(store):
    manifest = commit(store, "trace-scoring[a]", {"scores": [score_row(1, -1.0)]})
    assert manifest.ref.key in run(store, "remove", manifest.ref.key[:8])
    assert store.manifest(manifest.ref.kind, manifest.ref.key) is None


def test_gc_deletes_orphans_only_and_a_dry_run_nothing(store):
    manifest = commit(store, "trace-scoring[a]", {"scores": [score_row(1, -1.0)]})
    attempt = store.begin(Ref(kind="scores", key="0" * 16))
    (attempt.out / "half.parquet").write_bytes(b"x" * 10)
    assert "1 orphans, 10 bytes, would be deleted" in run(store, "gc", "--dry-run")
    assert attempt.out.exists()
    assert "1 orphans, 10 bytes, deleted" in run(store, "gc")
    assert not attempt.out.exists()
    assert store.verify(manifest) == []
    assert "0 orphans" in run(store, "gc")
