"""The teacher's traces and the students that several experiments share."""

from __future__ import annotations

from rlt_core.config import StudentSFTConfig
from rlt_core.experiments.nodes import Nodes
from rlt_core.graph import Node


def rlt_traces(nodes: Nodes, seed: int) -> tuple[Node, Node]:
    """Traces of the Reinforcement-Learned Teacher, and their scores."""
    teacher = nodes.teacher_grpo(seed)
    traces = nodes.traces(teacher, "rlt", seed)
    return traces, nodes.scores(traces, teacher, "rlt", seed)


def rlt_student(
    nodes: Nodes, seed: int, variant: str = "rlt", recipe: StudentSFTConfig | None = None
) -> Node:
    """A student of the RLT's traces; of several a question, of the one with the best reward."""
    traces, scores = rlt_traces(nodes, seed)
    if nodes.config.trace_generation.n == 1:
        return nodes.student_sft(variant, seed, traces, recipe=recipe)
    return nodes.student_sft(variant, seed, traces, scores, rank=1, recipe=recipe)
