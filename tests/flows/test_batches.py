"""Nodes travel together without any waiting for what travels with it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flows.batches import by_stage, one_by_one
from rlt_core.experiments import targets
from rlt_core.graph import Node, upstream
from rlt_core.overrides import load_config

NODES = upstream(targets("full-pipeline", load_config("tiny", ["seeds=[0,1]"])))


@given(
    st.integers(1, 20), st.sets(st.sampled_from(sorted(node.key for node in NODES)), max_size=40)
)
def test_every_missing_node_travels_once_after_what_it_reads(size: int, hits: set[str]) -> None:
    missing = [node for node in NODES if node.key not in hits]
    batches = by_stage(missing, lambda node: size)
    sent: set[str] = set(hits)
    for batch in batches:
        assert 1 <= len(batch.nodes) <= size
        assert len({node.stage.name for node in batch.nodes}) == 1
        for node in batch.nodes:
            assert {parent.key for parent in node.inputs.values()} <= sent
        sent |= set(batch.keys)
    assert sorted(key for batch in batches for key in batch.keys) == sorted(
        node.key for node in missing
    )


def test_sixteen_students_are_two_runs_and_a_batch_of_one_is_the_node() -> None:
    students = [node for node in NODES if node.variant.startswith("rank-") and node.seed == 0]
    students = [node for node in students if node.stage.name == "student-sft"]
    names = [batch.name for batch in by_stage(students, lambda node: 8)]
    assert names == ["8 student-sft", "8 student-sft"]
    alone: Node = NODES[0]
    assert [batch.name for batch in one_by_one([alone])] == [alone.name]
