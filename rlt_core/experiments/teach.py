"""The explanations that a student learns most from: sampled, scored for it, and the best kept."""

from rlt_core.config import Config
from rlt_core.experiments.nodes import Nodes
from rlt_core.graph import Node, upstream

VARIANT = "teach"


def teach(config: Config) -> Node:
    """The teacher is `base_model` as it is, or `endpoint_teacher`; the student `reward_student`."""
    nodes = Nodes(config)
    return nodes.report(VARIANT, upstream(_selected(nodes, seed) for seed in config.seeds))


def _selected(nodes: Nodes, seed: int) -> Node:
    """Return the explanations that are kept for a seed."""
    if nodes.config.endpoint_teacher:
        teacher, traces = None, nodes.endpoint_traces(VARIANT, seed)
    else:
        teacher, traces = nodes.base, nodes.traces(nodes.base, VARIANT, seed)
    scores = nodes.scores(traces, teacher, VARIANT, seed)
    return nodes.selected_traces(traces, scores, VARIANT, seed)
