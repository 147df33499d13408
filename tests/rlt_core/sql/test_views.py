"""SQL sees exactly what is committed, and can reach nothing else."""

import re
import uuid
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlt_core.errors import UserError
from rlt_core.rows import read_rows, write_rows
from rlt_core.sql import checked_files
from rlt_core.sql.schemas import TABLES
from rlt_core.sql.views import VIEWS, connect, refresh, sql_errors
from rlt_core.store import Store
from tests.sample_store import commit, sample_run, score_row


@pytest.fixture(scope="module", params=["local", "s3"])
def store(request, tmp_path_factory):
    """A finished run on a local disk, and on S3; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        root = str(folder / "store")
        if request.param == "s3":
            import s3_server

            request.getfixturevalue("s3_access")
            root = f"s3://{s3_server.BUCKET}/{uuid.uuid4().hex}"
        store = Store(root)
        sample_run(store)
        yield store


def test_every_view_is_there_and_typed_in_an_empty_store(store_root):
    with connect(Store(store_root)) as connection:
        for name, schema in VIEWS.items():
            relation = connection.sql(f"select * from {name}")
            assert relation.columns == schema.names
            assert relation.fetchall() == []
            empty = connection.sql(f"select * from {name}").to_arrow_table().schema
            assert empty.types == [_of_duckdb(kind) for kind in schema.types]
        assert connection.sql("select sum(reward) from scores").fetchall() == [(None,)]


def _of_duckdb(kind):
    """Arrow's type as DuckDB hands it back: lists have another name for their items."""
    return pa.list_(pa.field("l", kind.value_type)) if pa.types.is_list(kind) else kind


@pytest.mark.parametrize("table", TABLES)
def test_a_view_holds_the_rows_of_all_artifacts(store, table):
    expected = []
    for manifest in store.manifests():
        files = [file.path for file in manifest.files]
        if any(path.split("/")[0].removesuffix(".parquet") == table for path in files):
            rows = read_rows(store.intact(manifest), table)
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


def scores_path(store, manifest):
    return f"{store.data_path(manifest)}/scores.parquet"


@pytest.mark.parametrize("column", ["run", "label"])
def test_a_filter_on_run_or_label_reads_only_that_artifact(store_root, column):
    store = Store(store_root)
    good = commit(store, "trace-scoring[a]", {"scores": [score_row(1, -1.0)]})
    other = commit(store, "trace-scoring[b]", {"scores": [score_row(2, -2.0)]})
    store.files.fs.rm_file(scores_path(store, other))
    value = good.ref.key if column == "run" else good.label
    with connect(store) as connection:
        one = f"select reward from scores where {column} = '{value}'"
        assert connection.sql(one).fetchall() == [(-1.0,)]
        with pytest.raises(duckdb.Error, match=r"scores\.parquet"):
            connection.sql("select reward from scores").fetchall()


def test_what_is_not_committed_is_not_seen(store_root):
    store = Store(store_root)
    done = commit(store, "trace-scoring[a]", {"scores": [score_row(1, -1.0)]})
    for key in (done.ref.key, "0" * 16):  # an attempt that came second, one without a manifest
        attempt = store.begin(done.ref.model_copy(update={"key": key}))
        write_rows(attempt.out / "scores.parquet", "scores", [score_row(2, -2.0)])
        store.files.upload(f"artifacts/scores/{key}/{attempt.id}")
    beside = f"artifacts/scores/{done.ref.key}/{done.attempt}/scores"
    folder = store.files.new_folder(beside)
    write_rows(folder / "00000.parquet", "scores", [score_row(3, -3.0)])
    store.files.upload(beside)
    workspace = store.workspace("1" * 16)
    shard = workspace.begin("shards", "00000")
    write_rows(shard / "scores.parquet", "scores", [score_row(4, -4.0)])
    workspace.commit("shards", "00000")
    assert len([path for path in store.files.walk("") if path.endswith(".parquet")]) == 5
    with connect(store) as connection:
        assert connection.sql("select reward from scores").fetchall() == [(-1.0,)]
        assert connection.sql("select run from artifacts").fetchall() == [(done.ref.key,)]


def test_views_are_of_one_moment_until_they_are_refreshed(store_root):
    store = Store(store_root)
    first = commit(store, "trace-scoring[a]", {"scores": [score_row(1, -1.0)]})
    rewards = "select reward from scores order by reward"
    with connect(store) as connection:
        connection.execute("create table kept as from scores")
        second = commit(store, "trace-scoring[b]", {"scores": [score_row(2, -2.0)]})
        store.set_ref("tiny/b", second.ref)
        store.remove(first.ref)
        assert connection.sql("select label from artifacts").fetchall() == [(first.label,)]
        assert refresh(connection, store) == 1
        assert connection.sql(rewards).fetchall() == [(-2.0,)]
        assert connection.sql("select * from refs").fetchall() == [("tiny/b", second.ref.key)]
        assert connection.sql("select reward from kept").fetchall() == [(-1.0,)]
        with pytest.raises(duckdb.Error, match="locked"):
            connection.sql("set enable_external_access = true")


def read_bytes():
    """Bytes that this process has read so far, by any thread."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


def test_a_query_reads_only_the_columns_of_a_large_file_that_it_names(tmp_path, monkeypatch):
    monkeypatch.setattr(checked_files, "LARGE_BYTES", 1 << 20)
    store = Store(str(tmp_path))
    draw = np.random.default_rng(0)
    lists = ("student_think_logprobs", "teacher_think_logprobs")
    rows = [
        score_row(number, -1.0, **{name: draw.normal(size=2000).tolist() for name in lists})
        for number in range(100)
    ]
    manifest = commit(store, "trace-scoring[a]", {"scores": rows})
    narrow, wide = "sum(reward)", "sum(list_sum(teacher_think_logprobs))"
    with connect(store) as connection:
        read = {}
        for column in (narrow, wide):
            before = read_bytes()
            assert connection.sql(f"select {column} from scores").fetchall()
            read[column] = read_bytes() - before
    size = (tmp_path / scores_path(store, manifest)).stat().st_size
    assert read[narrow] < 0.1 * size  # the footer, for the most part
    assert 0.4 * size < read[wide] < 0.6 * size


def test_look_ups_of_names_and_inputs_keep_other_files_shut(store_root):
    store = Store(store_root)
    read = commit(store, "trace-scoring[a]", {"scores": [score_row(1, -1.0)]})
    reader = commit(store, "student-sft[a]", {}, inputs={"scores": read})
    other = commit(store, "trace-scoring[b]", {"scores": [score_row(2, -2.0)]})
    store.set_ref("it's/student-sft[a]@0", reader.ref)
    store.files.fs.rm_file(scores_path(store, other))
    run = "run_of('it''s/student-sft[a]@0')"
    with connect(store) as connection:
        for condition in (
            f"run = input_of({run}, 'scores')",
            f"run in (input_of({run}, 'scores'), {run})",
        ):
            sql = f"select reward from scores where {condition}"
            assert connection.sql(sql).fetchall() == [(-1.0,)]
        nothing = f"select run_of('nothing'), input_of({run}, 'traces'), run_of(null)"
        assert connection.sql(nothing).fetchall() == [(None, None, None)]
        store.set_ref("new", other.ref)
        refresh(connection, store)
        assert connection.sql("select run_of('new')").fetchall() == [(other.ref.key,)]


def test_costs_metrics_config_and_names_are_those_of_the_manifests(store):
    with connect(store) as connection:
        costs = connection.sql(
            "select run, stage, seconds, thread_seconds, gpu_seconds, started, created from costs"
        ).fetchall()
        json = connection.sql(
            "select seed, (metrics->>'alarm_reward_falling')::double, "
            "config->'nested'->>'learning_rate' from artifacts where stage = 'teacher-grpo' "
            "order by seed"
        ).fetchall()
        names = connection.sql("select name, run from refs").fetchall()
    assert sorted(costs) == sorted(
        (
            one.ref.key, one.stage, one.seconds, one.seconds * one.threads, one.gpu_seconds,
            one.started_at.replace(tzinfo=None), one.finished_at.replace(tzinfo=None),
        )
        for one in store.manifests()
    )  # fmt: skip
    assert json == [(0, 0.0, "0.0001"), (1, 1.0, "0.0001")]
    assert dict(names) == {name: ref.key for name, ref in store.refs().items()}


FORBIDDEN = (
    "select * from read_text('{file}')", "select * from read_parquet('{file}')",
    "select * from '{file}'", "copy (select 1) to '{file}'", "copy scores to '{file}.csv'",
    "export database '{file}'", "attach '{file}.db'", "install httpfs", "load httpfs",
    "select * from secret", "set enable_external_access = true",
    "set python_enable_replacements = true", "reset lock_configuration", "delete from scores",
    "insert into artifacts select * from artifacts",
)  # fmt: skip


def test_sql_reaches_nothing_but_the_views(store, tmp_path):
    secret = pa.table({"a": [1]})
    file = tmp_path / "secret.parquet"
    pq.write_table(secret, file)
    before = {path: store.files.read(path) for path in store.files.walk("artifacts")}
    with connect(store) as connection:
        for statement in FORBIDDEN:
            with pytest.raises(duckdb.Error):
                connection.sql(statement.format(file=file)).fetchall()
    assert list(tmp_path.iterdir()) == [file]
    assert pq.read_table(file) == secret
    assert {path: store.files.read(path) for path in store.files.walk("artifacts")} == before


def test_a_mistake_in_sql_says_what_is_nearest(tmp_path):
    with connect(Store(str(tmp_path))) as connection:
        for statement, hint in (
            ("select * from scors", "scors.*did you mean 'scores'"),
            ("select rewrd from scores", "rewrd.*did you mean 'reward'"),
            ("select s.rnk from scores s", "rnk.*did you mean 'rank'"),
            (
                "select t.correct from scores s join traces t using (trace_id)",
                r"correct is a column of scores",
            ),
            ("select zzz from dropped", "zzz.*detail"),
            ("select 1 frm scores", "syntax error.*scores"),
            ("select 'a'::int", "'a'"),
            ("select avgg(1)", "avgg.*avg"),
        ):
            with pytest.raises(UserError, match=f"(?s){hint}"), sql_errors(statement):
                connection.sql(statement).fetchall()


def test_a_damaged_or_missing_file_is_one_clear_error(store_root):
    store = Store(store_root)
    manifest = commit(store, "trace-scoring[a]", {"scores": [score_row(1, -1.0)] * 100})
    path = scores_path(store, manifest)
    whole = store.files.fs.cat_file(path)
    sql = "select sum(reward) from scores"
    for damaged in (whole[:100] + whole[200:], whole[:-9], b"", None):
        if damaged is None:
            store.files.fs.rm_file(path)
        else:
            store.files.fs.pipe_file(path, damaged)
        with (
            connect(store) as connection,
            pytest.raises(UserError, match="scores cannot be read") as caught,
            sql_errors(sql),
        ):
            connection.sql(sql).fetchall()
        assert "`rlt artifacts verify` lists what is damaged" in str(caught.value)


def test_an_s3_server_that_has_gone_is_one_clear_error(tmp_path, monkeypatch):
    import s3_server

    sql = "select sum(reward) from scores"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "server").mkdir()
    with s3_server.serve(tmp_path / "server") as access:
        for name, value in access.environment().items():
            monkeypatch.setenv(name, value)
        store = Store(f"s3://{s3_server.BUCKET}/gone")
        commit(store, "trace-scoring[a]", {"scores": [score_row(1, -1.0)]})
        connection = connect(store)
    with connection, pytest.raises(UserError) as caught, sql_errors(sql):
        connection.sql(sql).fetchall()
    message = str(caught.value)
    assert "scores cannot be read" in message and "check the server" in message
    assert access.secret_key not in message and access.access_key not in message


def test_many_artifacts_are_one_table(tmp_path):
    store = Store(str(tmp_path))
    for number in range(30):
        label = f"trace-scoring[{number}]"
        commit(store, label, {"scores": [score_row(1, float(number))]})
    with connect(store) as connection:
        query = "select count(distinct run), sum(reward) from scores"
        assert connection.sql(query).fetchall() == [(30, 435.0)]
