"""SQL sees exactly what is committed, and can reach nothing else."""

import time

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlt_core.errors import UserError
from rlt_core.rows import read_rows
from rlt_core.schemas import TABLES
from rlt_core.store import Store
from rlt_core.tables import VIEWS, connect, sql_errors
from tests.sample_store import commit, sample_run, score_row


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(str(tmp_path_factory.mktemp("store")))
    sample_run(store)
    return store


def test_every_view_is_there_and_typed_in_an_empty_store(tmp_path):
    with connect(Store(str(tmp_path / "none"))) as connection:
        for name, schema in VIEWS.items():
            relation = connection.sql(f"select * from {name}")
            assert relation.columns == schema.names
            assert relation.fetchall() == []
        assert connection.sql("select sum(reward) from scores").fetchall() == [(None,)]


@pytest.mark.parametrize("table", TABLES)
def test_a_view_holds_the_rows_of_all_artifacts(store, table):
    expected = []
    for manifest in store.manifests():
        files = [file.path for file in manifest.files]
        if any(path.split("/")[0].removesuffix(".parquet") == table for path in files):
            rows = read_rows(store.local(manifest), table)
            label = {} if "label" in TABLES[table].names else {"label": manifest.label}
            expected += [{"run": manifest.ref.key, **label, **row} for row in rows]
    with connect(store) as connection:
        found = connection.sql(f"select * from {table}").to_arrow_table().to_pylist()
    assert sorted(map(repr, found)) == sorted(map(repr, expected))


def test_run_joins_rows_with_artifacts_and_lineage(store):
    with connect(store) as connection:
        rows = connection.sql(
            """
            select distinct a.stage, l.input, l.input_stage, s.label
            from scores s join artifacts a using (run) join lineage l using (run)
            where s.label = 'trace-scoring[rlt-held-out]' order by l.input
            """
        ).fetchall()
    label = "trace-scoring[rlt-held-out]"
    assert rows == [
        ("trace-scoring", "questions", "dataset-prep", label),
        ("trace-scoring", "teacher", "teacher-grpo", label),
        ("trace-scoring", "traces", "trace-generation", label),
    ]


def test_a_filter_on_run_reads_only_that_artifact(tmp_path):
    store = Store(str(tmp_path))
    good = commit(store, "trace-scoring[a]", {"scores": [score_row(1, -1.0)]})
    other = commit(store, "trace-scoring[b]", {"scores": [score_row(2, -2.0)]})
    (store.local(other) / "scores.parquet").unlink()
    with connect(store) as connection:
        one = f"select reward from scores where run = '{good.ref.key}'"
        assert connection.sql(one).fetchall() == [(-1.0,)]
        with pytest.raises(duckdb.Error, match=r"scores\.parquet"):
            connection.sql("select reward from scores").fetchall()


def test_an_attempt_without_manifest_is_not_seen(tmp_path):
    store = Store(str(tmp_path))
    done = commit(store, "trace-scoring[a]", {"scores": [score_row(1, -1.0)]})
    attempt = store.begin(done.ref.model_copy(update={"key": "0" * 16}))
    source = store.local(done) / "scores.parquet"
    pq.write_table(pq.read_table(source), attempt.out / "scores.parquet")
    with connect(store) as connection:
        assert connection.sql("select count(*) from scores").fetchall() == [(1,)]


def test_metrics_and_config_of_artifacts_are_json(store):
    with connect(store) as connection:
        rows = connection.sql(
            "select seed, (metrics->>'alarm_reward_falling')::double, "
            "config->'nested'->>'learning_rate' from artifacts where stage = 'teacher-grpo' "
            "order by seed"
        ).fetchall()
    assert rows == [(0, 0.0, "0.0001"), (1, 1.0, "0.0001")]


@pytest.mark.parametrize(
    "statement",
    [
        "select * from read_text('{file}')",
        "select * from read_parquet('{file}')",
        "select * from '{file}'",
        "copy (select 1) to '{file}'",
        "copy scores to '{file}.csv'",
        "export database '{file}'",
        "attach '{file}.db'",
        "install httpfs",
        "load httpfs",
        "select * from secret",
        "set enable_external_access = true",
        "set python_enable_replacements = true",
        "reset lock_configuration",
        "delete from scores",
        "insert into artifacts select * from artifacts",
    ],
)
def test_sql_reaches_nothing_but_the_views(store, tmp_path, statement):
    secret = pa.table({"a": [1]})
    file = tmp_path / "secret.parquet"
    pq.write_table(secret, file)
    before = {path: store.files.read(path) for path in store.files.walk("artifacts")}
    with connect(store) as connection, pytest.raises(duckdb.Error):
        connection.sql(statement.format(file=file)).fetchall()
    assert list(tmp_path.iterdir()) == [file]
    assert pq.read_table(file) == secret
    assert {path: store.files.read(path) for path in store.files.walk("artifacts")} == before


@pytest.mark.parametrize(
    ("statement", "hints"),
    [
        ("select * from scors", ["scors", "nearest table: scores"]),
        ("select rewrd from scores", ["rewrd", "nearest column: reward"]),
        ("select s.rnk from scores s", ["rnk", "nearest column: rank"]),
        ("select zzz from dropped", ["zzz", "detail"]),
        ("select 1 frm scores", ["syntax error", "scores"]),
        ("select 'a'::int", ["'a'"]),
        ("select avgg(1)", ["avgg", "avg"]),
    ],
)
def test_a_mistake_in_sql_says_what_is_nearest(store, statement, hints):
    with (
        connect(store) as connection,
        pytest.raises(UserError) as caught,
        sql_errors(statement),
    ):
        connection.sql(statement).fetchall()
    assert all(hint in str(caught.value) for hint in hints)


def test_many_artifacts_are_quick(tmp_path):
    store = Store(str(tmp_path))
    for number in range(100):
        label = f"trace-scoring[{number}]"
        commit(store, label, {"scores": [score_row(1, float(number))]})
    started = time.perf_counter()
    with connect(store) as connection:
        query = "select count(distinct run), sum(reward) from scores"
        assert connection.sql(query).fetchall() == [(100, 4950.0)]
    assert time.perf_counter() - started < 2.0
