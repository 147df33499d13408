"""`rlt artifacts pull`, `push` and `cache`."""

import json
from pathlib import Path

import pytest

from flows.cli.artifacts import app
from rlt_core.errors import UserError
from rlt_core.store import Store
from tests.flows.conftest import invoke
from tests.sample_store import commit, sample_run, score_row


@pytest.fixture
def here(tmp_path):
    return Store(str(tmp_path / "here"))


def run(*arguments, code=0):
    return invoke(app, *arguments, code=code).output


def test_everything_goes_there_and_back(here, store_root, tmp_path):
    made = sample_run(here, seeds=(0,), ranks=1)
    here.set_ref("tiny/report", next(iter(made.values())).ref)
    shown = run("push", "--all", "--refs", "--to", f"{store_root}-there", "--store", here)
    assert f"{len(made)} artifacts copied" in shown and "0 were there, 0 failed" in shown
    again = run("push", "--all", "--to", f"{store_root}-there", "--store", here)
    assert f"0 artifacts copied (0 bytes), {len(made)} were there" in again
    back = Store(str(tmp_path / "back"))
    run("pull", "--all", "--refs", "--from", f"{store_root}-there", "--store", back)
    assert f"{len(made)} of {len(made)} artifacts are intact" in run("verify", "--store", back)
    assert back.refs() == here.refs()
    listed = [run("list", "--json", "--store", store) for store in (here, back)]
    assert json.loads(listed[0]) == json.loads(listed[1])


def test_names_keys_and_beginnings_with_or_without_inputs(here, tmp_path):
    made = sample_run(here, seeds=(0,), ranks=0)
    scored = made["trace-scoring[rlt-held-out]@0"]
    here.set_ref("tiny/scores", scored.ref)
    there = tmp_path / "there"
    run("push", "tiny/scores", scored.ref.key[:8], "--to", there, "--store", here)
    assert [manifest.ref for manifest in Store(str(there)).manifests()] == [scored.ref]
    run("push", scored.ref.key, "--with-inputs", "--to", there, "--store", here)
    assert len(Store(str(there)).manifests()) == 6
    assert Store(str(there)).refs() == {}
    here.remove(made["base-model"].ref)
    lost = run("push", scored.ref.key, "--with-inputs", "--to", there, "--store", here, code=1)
    assert "is not in" in lost and made["base-model"].ref.key in lost


def test_one_damaged_artifact_does_not_keep_the_others(here, tmp_path):
    good = commit(here, "trace-scoring[a]", {"scores": [score_row(1, -1.0)]})
    bad = commit(here, "trace-scoring[b]", {"scores": [score_row(1, -2.0)]})
    (here.intact(bad) / "scores.parquet").write_bytes(b"")
    there = tmp_path / "there"
    shown = run("push", "--all", "--to", there, "--store", here, code=1)
    assert "1 artifacts copied" in shown and "1 failed" in shown and bad.ref.key in shown
    assert [manifest.ref for manifest in Store(str(there)).manifests()] == [good.ref]


def test_mistakes(here, tmp_path):
    commit(here, "trace-scoring[a]", {"scores": [score_row(1, -1.0)]})
    with pytest.raises(UserError, match="same store"):
        run("push", "--all", "--to", here, "--store", here)
    with pytest.raises(UserError, match="--all"):
        run("push", "--to", tmp_path / "there", "--store", here)
    with pytest.raises(UserError, match="no artifact 'zzz'"):
        run("pull", "zzz", "--from", here, "--store", tmp_path / "there")
    with pytest.raises(UserError, match="a bucket and a prefix only"):
        run("push", "--all", "--to", "s3://a:b@c/d", "--store", here)


@pytest.mark.parametrize("store_root", ["s3"], indirect=True)
def test_the_cache_is_shown_and_cleared(store_root, monkeypatch):
    monkeypatch.setenv("RLT_CACHE_GB", "1")
    commit(Store(store_root), "trace-scoring[a]", {"scores": [score_row(1, -1.0)]})
    assert "1 files" in run("cache") and "of 1.0 GB" in run("cache")
    shown = run("cache", "--clear")
    assert "1 files" in shown and "0 files, 0 bytes of 1.0 GB" in shown
    assert Path(shown.split(" in ")[-1].strip()).is_dir()
