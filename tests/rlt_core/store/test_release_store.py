"""A store that version 0.1 wrote stays readable: listing, verification, SQL, plan, workspaces.

`release_store` holds nodes of a `smoke` run, an unfinished one among them; it is never renewed.
"""

import shutil
from pathlib import Path

import pytest

from rlt_core import graph
from rlt_core.experiments import targets
from rlt_core.graph import key_of
from rlt_core.overrides import load_config
from rlt_core.rows import read_rows
from rlt_core.sql.views import connect
from rlt_core.stages import STAGES, parse_config
from rlt_core.store import Store
from rlt_core.store.manifest import read_manifests

KINDS = ["dataset", "evaluation", "ranking", "scores", "traces"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    root = tmp_path / "store"
    shutil.copytree(Path(__file__).with_name("release_store"), root)
    return Store(str(root))


def test_a_store_of_the_first_release_is_read(store: Store) -> None:
    manifests, problems = read_manifests(store.files)
    assert sorted(one.ref.kind for one in manifests.values()) == KINDS and problems == {}
    assert [line for one in manifests.values() for line in store.verify(one)] == []
    for one in manifests.values():
        folder = store.intact(one)
        assert sum(len(read_rows(folder, table)) for table in one.tables) == one.rows
    refs = {store.find(name).ref for name in store.refs()}
    assert refs == {one.ref for one in manifests.values()}
    with connect(store) as connection:
        counts = "select count(*) from {}"
        for table in ("questions", "traces", "scores", "eval_samples", "rank_scores", "artifacts"):
            assert connection.sql(counts.format(table)).fetchall() > [(0,)], table
    assert list(store.unfinished().values()) == ["trace-generation[rlt]@0"]
    assert store.gc() == []


def test_its_unfinished_work_goes_on(store: Store) -> None:
    work = store.workspace("bcf33de241277b68")
    assert work.parts("shards") == ["8-000000"]
    assert work.metrics("shards")["8-000000"] == {"machine": 0, "seconds": 1.5}
    assert (work.path("shards", "8-000000") / "traces.txt").read_text() == "a shard"


def test_its_configs_have_their_keys_and_a_plan_finds_them(store: Store) -> None:
    current = [one for one in store.manifests() if one.stage_version == STAGES[one.stage].version]
    assert current, "all stages have new versions: add a store of that release beside this one"
    for one in current:
        config = parse_config(one.stage, one.config)
        inputs = {name: ref.key for name, ref in one.inputs.items()}
        assert key_of(STAGES[one.stage], config, inputs) == one.ref.key, one.label
    planned = graph.plan(targets("full-pipeline", load_config("smoke")), store, "smoke")
    hits = {item.node.key for item in planned if item.hit}
    assert {one.ref.key for one in current if one.stage == "dataset-prep"} <= hits
