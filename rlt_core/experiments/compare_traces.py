"""Qualitative: the data set's trace beside the RLT's of the same question, with their rewards."""

from rlt_core.config import Config
from rlt_core.experiments.nodes import Nodes
from rlt_core.graph import Node, upstream


def compare_traces(config: Config) -> Node:
    """Both sets are scored with the same teacher, reward student and KL estimator: that of
    off-policy traces, which the data set's are."""
    nodes, kl = Nodes(config), config.trace_scoring.off_policy_kl
    parts, rlt = [], "rlt" if kl == config.reward.kl else "rlt-compared"
    for seed in config.seeds:
        teacher = nodes.teacher_grpo(seed)
        traces, _ = nodes.rlt_traces(seed)
        parts.append(nodes.scores(nodes.dataset_traces, teacher, "dataset", seed))
        parts.append(nodes.scores(traces, teacher, rlt, seed, kl))
    return nodes.report("compare-traces", upstream(parts), compared=("dataset", rlt))
