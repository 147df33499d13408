"""docs/sql.md: its columns are the views', its queries give the right rows.

`cookbook_results.json` holds the rows of each query on the store of `fill`; they were compared with
the same results computed in Python from the store's rows when they were recorded.
"""

import json
import re
import uuid
from pathlib import Path

import pytest
import s3_server

from rlt_core.models import tiny_tokenizer
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.rows import read_rows
from rlt_core.sql.schemas import SQL_TYPES, VIEWS, reference
from rlt_core.sql.views import connect
from rlt_core.store import Store
from tests.cookbook import PAGE, queries
from tests.sample_store import commit, sample_run, score_row, scored_training_traces

QUERIES = queries()
RESULTS = json.loads(Path(__file__).with_name("cookbook_results.json").read_text())
DISTILLATION = "Distillation data"


def fill(store):
    """A run of two seeds, and artifacts of older settings that no name refers to any more."""
    made = sample_run(store)
    for variant in ("sft", "rlt"):
        for manifest in scored_training_traces(store, made, variant=variant):
            made[f"{manifest.label}@0"] = manifest
    commit(store, "trace-scoring[sft]", {"scores": [score_row(5, 9.0, rank=1)]}, seed=7)
    commit(store, "teacher-sft", {}, seed=7, config={"nested": {"learning_rate": 2e-4}})
    return made


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    store = Store(str(tmp_path_factory.mktemp("store")))
    return store, fill(store)


@pytest.fixture(scope="module")
def table(filled):
    """The rows of an artifact's table, by the artifact's name."""
    store, made = filled
    return lambda name, table: read_rows(store.intact(made[name]), table)


def rows_of(store, sql):
    with connect(store) as connection:
        return connection.sql(sql).to_arrow_table().to_pylist()


# ---------------------------------------------------------------- the page
def test_the_column_reference_is_generated_and_its_types_are_those_of_the_views(filled):
    page = PAGE.read_text()
    assert "\n".join(reference()) in page, "paste the output of python -m rlt_core.sql.schemas"
    with connect(filled[0]) as connection:
        for view, schema in VIEWS.items():
            described = connection.execute(f"describe {view}").fetchall()
            found = [(name, kind.lower()) for name, kind, *_ in described]
            assert found == [(field.name, SQL_TYPES[field.type]) for field in schema], view


def test_every_query_is_about_the_names_of_a_run():
    assert RESULTS.keys() == QUERIES.keys() - {DISTILLATION} and len(QUERIES) >= 10
    by_label = [title for title, sql in QUERIES.items() if "'tiny/" not in sql]
    assert by_label == ["What changed between two runs of a node"]


@pytest.mark.parametrize("place", ["local", "s3"])
def test_every_query_gives_the_right_rows(filled, place, request, tmp_path, monkeypatch):
    store = filled[0]
    if place == "s3":
        request.getfixturevalue("s3_access")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        store = Store(f"s3://{s3_server.BUCKET}/{uuid.uuid4().hex}")
        fill(store)
    with connect(store) as connection:
        for title, expected in RESULTS.items():
            relation = connection.sql(QUERIES[title])
            assert relation.columns == expected["columns"], title
            found = relation.fetchall()
            assert len(found) == len(expected["rows"]) > 0, title
            for row, wanted in zip(found, expected["rows"], strict=True):
                for value, right in zip(row, wanted, strict=True):
                    same = pytest.approx(right, abs=1e-8) if isinstance(right, float) else right
                    comparable = isinstance(value, int | float | str | list | None)
                    assert (value if comparable else str(value)) == same, title


def test_a_query_about_one_name_opens_no_other_file(filled):
    store = filled[0]
    old = next(m for m in store.manifests() if m.label == "trace-scoring[sft]" and m.seed == 7)
    file = store.intact(old) / "scores.parquet"
    file.rename(file.with_suffix(".away"))
    about_one = [sql for sql in QUERIES.values() if "run_of(" in sql]
    assert len(about_one) >= 8
    try:
        for sql in about_one:
            assert rows_of(store, sql)
    finally:
        file.with_suffix(".away").rename(file)


# ---------------------------------------------------------------- what the queries promise
@pytest.mark.parametrize("name", ["tiny", "rlt"])
def test_the_distillation_data_are_the_chats_that_the_student_is_trained_on(filled, table, name):
    format = load_format(name)
    assert filled[1]["trace-generation[rlt]@0"].config["format"] == load_format("tiny").model_dump(
        mode="json"
    )
    sql = QUERIES[DISTILLATION].replace(
        "select config->'format' as f", f"select '{format.model_dump_json()}'::json as f"
    )
    assert sql != QUERIES[DISTILLATION]
    questions = {row["question_id"]: row for row in table("dataset-prep", "questions")}
    traces = {row["trace_id"]: row for row in table("trace-generation[rlt]@0", "traces")}
    rewards = {row["trace_id"]: row["reward"] for row in table("trace-scoring[rlt]@0", "scores")}
    rows = rows_of(filled[0], sql)
    assert [row["trace_id"] for row in rows] == sorted(t for t in traces if traces[t]["closed"])
    right = rows_of(filled[0], sql.replace("-- and s.correct", "and s.correct"))
    assert 0 < len(right) < len(rows) and right == [row for row in rows if row["correct"]]
    tokenizer = tiny_tokenizer(format)
    renderer = Renderer(format, tokenizer)
    for row in rows:
        trace = traces[row["trace_id"]]
        question = questions[trace["question_id"]]
        assert row["reward"] == rewards[row["trace_id"]]
        answers = re.findall(r"-?\d+", trace["text"])
        assert row["correct"] is (answers[-1:] == [question["answer"]])
        assert (row["question"], row["explanation"]) == (question["question"], trace["text"])
        trained = renderer.student_sft_row(
            question["question"], renderer.encode(trace["text"]), question["solution"]
        )
        chat = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        assert chat == tokenizer.decode(trained.input_ids) + "\n"  # after the end of the turn


def test_the_replay_is_the_stored_reward_at_its_own_weights(filled, table):
    store, made = filled
    spec = made["trace-scoring[sft]@0"].config["reward"]
    title = "Replay the reward with other weights"
    own = QUERIES[title].replace("1.0::double", f"{spec['kl_weight']}::double")
    own = own.replace("0.0::double", f"{spec['alpha']}::double")
    assert own != QUERIES[title]
    found = rows_of(store, own)
    scored = {row["trace_id"]: row for row in table("trace-scoring[sft]@0", "scores")}
    assert len(found) == sum(row["status"] == "scored" for row in scored.values()) == 23
    for row in found:
        assert row["replayed"] == pytest.approx(scored[row["trace_id"]]["reward"], abs=1e-6)
        assert row["new_rank"] == row["rank"]
