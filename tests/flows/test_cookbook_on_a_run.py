"""The cookbook of docs/sql.md on what a real run leaves."""

import re
from pathlib import Path

import pytest

from rlt_core.sql.views import connect
from rlt_core.store import Store
from tests.cookbook import queries

MAY_BE_EMPTY = {
    "Distillation data",
    "High reward, wrong result", "Questions that no model solves", "What a student unlearned",
    "Dropped rows by reason", "What changed between two runs of a node",
}  # fmt: skip


def test_every_query_answers_on_a_finished_run(smoke_store: Path) -> None:
    assert queries("smoke")
    with connect(Store(str(smoke_store))) as connection:
        for title, sql in queries("smoke").items():
            rows = connection.sql(sql).fetchall()
            assert rows or title in MAY_BE_EMPTY, title


def test_an_explanation_is_correct_if_its_last_number_is_the_answer(smoke_store: Path) -> None:
    sql = queries("smoke")["Distillation data"].replace("and t.closed", "")
    inner = sql.strip().removesuffix(";")
    with connect(Store(str(smoke_store))) as connection:
        rows = connection.sql(f"select explanation, answer, correct from ({inner})")
        found = rows.fetchall()
    assert found
    for explanation, answer, correct in found:
        assert correct is (re.findall(r"\d+", explanation)[-1:] == [answer])


def test_the_replay_is_the_reward_that_the_run_stored(smoke_store: Path) -> None:
    sql = queries("smoke")["Replay the reward with other weights"]
    own = sql.replace("1.0::double", "3.0::double").replace("0.0::double", "0.01::double")
    with connect(Store(str(smoke_store))) as connection:
        rows = connection.sql(own).fetchall()
        (spec,) = connection.sql(
            "select config->'reward'->>'kl_weight', config->'reward'->>'alpha' from artifacts "
            "join refs using (run) where name = 'smoke/trace-scoring[sft]@0'"
        ).fetchall()
    assert spec == ("3.0", "0.01")
    assert [row[2] for row in rows] == pytest.approx([row[1] for row in rows], abs=1e-6)
    assert [row[4] for row in rows] == [row[3] for row in rows]
