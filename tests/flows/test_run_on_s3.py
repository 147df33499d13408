"""A run whose store is a bucket of a real S3 server."""

from pathlib import Path

import pytest

from rlt_core.store import Store
from tests.flows.conftest import Rlt

pytestmark = pytest.mark.parametrize("store_root", ["s3"], indirect=True)


def run_twice(rlt: Rlt, store_root: str, target: str) -> Store:
    """The store after a run of the target, whole and clean; the second run computed nothing."""
    made = {}
    for _ in range(2):
        done = rlt("run", target, "--profile", "smoke", "--store", store_root)
        assert done.returncode == 0, done.stdout + done.stderr
        store = Store(store_root)
        now = {manifest.ref.key: manifest.attempt for manifest in store.manifests()}
        assert now == (made or now)
        made = now
    assert [problem for manifest in store.manifests() for problem in store.verify(manifest)] == []
    assert store.orphans() == [] and store.working() == {} and store.unfinished() == {}
    return store


def test_a_stage_with_all_that_it_needs(rlt: Rlt, store_root: str, tmp_path: Path) -> None:
    """Shards, checkpoints, models and tables go to S3 and come back from it."""
    store = run_twice(rlt, store_root, "teacher-sft")
    there = str(tmp_path / "there")
    taken = rlt("artifacts", "pull", "smoke/teacher-sft@0", "--with-inputs", "--from", str(store),
                "--store", there)  # fmt: skip
    assert taken.returncode == 0, taken.stderr
    done = rlt("run", "teacher-sft", "--profile", "smoke", "--store", there)
    assert done.returncode == 0
    computed = {manifest.attempt for manifest in Store(there).manifests()}
    assert computed == {manifest.attempt for manifest in store.manifests()}


@pytest.mark.slow
def test_the_full_pipeline(rlt: Rlt, store_root: str) -> None:
    store = run_twice(rlt, store_root, "full-pipeline")
    shown = rlt("report", "--profile", "smoke", "--path", "--store", str(store))
    assert Path(shown.stdout.strip()).is_file()
