"""Qualitative: the data set's trace beside the RLT's of the same question, with their rewards."""

from __future__ import annotations

from rlt_core.config import Config
from rlt_core.experiments.nodes import Nodes
from rlt_core.experiments.students import rlt_traces
from rlt_core.graph import Node, upstream


def compare_traces(config: Config) -> Node:
    """Both sets are scored with the same teacher and reward student."""
    nodes = Nodes(config)
    parts = []
    for seed in config.seeds:
        teacher = nodes.teacher_grpo(seed)
        parts.append(nodes.scores(nodes.dataset_traces, teacher, "dataset", seed))
        parts.append(rlt_traces(nodes, seed)[1])
    return nodes.report("compare-traces", upstream(parts), compared=("dataset", "rlt"))
