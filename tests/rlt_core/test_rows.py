"""Rows come back from Parquet as they went in, in little space."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_core.rows import read_rows, write_rows, write_table
from rlt_core.sql.schemas import SCORES, TABLES
from tests.sample_store import row, score_row

logprobs = st.none() | st.lists(st.floats(width=32, allow_nan=False), max_size=5)


@given(st.lists(st.tuples(logprobs, logprobs, st.none() | st.text()), max_size=8))
def test_lists_of_floats_come_back_bit_for_bit(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("rows")
    rows = [
        row("scores", trace_id=text, student_think_logprobs=think, think_kl=kl)
        for think, kl, text in drawn
    ]
    assert write_rows(folder / "scores.parquet", "scores", rows) == len(rows)
    assert read_rows(folder, "scores") == rows


@pytest.mark.parametrize("table", TABLES)
def test_every_table_can_be_written(tmp_path, table):
    write_rows(tmp_path / f"{table}.parquet", table, [row(table)])
    assert read_rows(tmp_path, table) == [row(table)]
    assert pq.read_schema(tmp_path / f"{table}.parquet").equals(TABLES[table])


def test_log_probs_take_less_space_than_as_parquet_would_have_it(tmp_path):
    draw = np.random.default_rng(0)
    values = -draw.exponential(size=(200, 300)) * np.where(draw.random((200, 300)) < 0.6, 0.01, 2)
    rows = [score_row(1, -1.0, student_think_logprobs=list(map(float, one))) for one in values]
    table = pa.Table.from_pylist(rows, schema=SCORES)
    write_table(tmp_path / "ours.parquet", table)
    pq.write_table(table, tmp_path / "usual.parquet", compression="zstd")
    ours, usual = ((tmp_path / f"{name}.parquet").stat().st_size for name in ("ours", "usual"))
    assert ours < 0.92 * usual


def test_a_row_with_other_columns_is_refused(tmp_path):
    for wrong in ({"reward": 1.0}, score_row(1, -1.0) | {"extra": 1}):
        with pytest.raises(ValueError, match="row of scores: columns missing or unknown"):
            write_rows(tmp_path / "scores.parquet", "scores", [wrong])
