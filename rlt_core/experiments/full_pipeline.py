"""The whole pipeline once: teacher, its traces, students of them, and what they score."""

from __future__ import annotations

from rlt_core.config import Config
from rlt_core.experiments.nodes import Nodes
from rlt_core.graph import Node, upstream

VALIDATION_SAMPLES = 4
"""Completions a held-out question on which the teachers' rewards are compared."""


def full_pipeline(config: Config) -> Node:
    """Every stage: the report's inputs are the graph."""
    nodes = Nodes(config)
    parts = [nodes.evaluation(nodes.student_base, "base", None)]
    rank_scores: dict[int, Node] = {}
    ranked: dict[str, Node] = {}
    for seed in config.seeds:
        parts += _teachers_on_held_out_questions(nodes, seed)
        parts += _students(nodes, seed)
        if config.rank_ablation:
            rank_scores[seed], by_rank = _rank_students(nodes, seed)
            ranked |= by_rank
    if config.rank_ablation:
        parts.append(nodes.rank_statistics(config.rank_ablation.sets[0], rank_scores, ranked))
    for name, source in config.imports.models.items():
        parts.append(nodes.evaluation(nodes.model(source, name), name, None))
    for name, path in config.imports.scores.items():
        parts.append(nodes.imported_scores(name, path))
    # The report reads every node: costs, training curves, dropped rows.
    return nodes.report("full-pipeline", upstream(parts))


def _teachers_on_held_out_questions(nodes: Nodes, seed: int) -> list[Node]:
    """Rewards of the teacher before and after RL on questions that neither was trained on."""
    if not nodes.config.data.n_validation:
        return []
    scored = []
    for name, teacher in (("sft", nodes.teacher_sft(seed)), ("rlt", nodes.teacher_grpo(seed))):
        variant = f"{name}-held-out"
        traces = nodes.traces(
            teacher, variant, seed, "validation", n=VALIDATION_SAMPLES, n_questions=None
        )
        scored.append(nodes.scores(traces, teacher, variant, seed))
    return scored


def _students(nodes: Nodes, seed: int) -> list[Node]:
    """Students of the RLT's traces, also refined ones, of the data set's and of imported ones; RL
    from the first."""
    teacher = nodes.teacher_grpo(seed)
    traces = nodes.traces(teacher, "rlt", seed)
    scores = nodes.scores(traces, teacher, "rlt", seed)
    rank = 1 if nodes.config.trace_generation.n > 1 else None
    rlt = nodes.student_sft("rlt", seed, traces, scores if rank else None, rank=rank)
    students = {"rlt": rlt}
    if nodes.config.teacher_sft.traces == "dataset":
        students["dataset"] = nodes.student_sft("dataset", seed)
    for name, path in nodes.config.imports.traces.items():
        students[name] = nodes.student_sft(name, seed, nodes.imported_traces(name, path))
    if refinement := nodes.config.trace_refinement:
        refined = nodes.refined_traces(traces, seed)
        students[refinement.name] = nodes.student_sft(refinement.name, seed, refined)
    if nodes.config.student_grpo:
        students["rlt+rl"] = nodes.student_grpo(rlt, "rlt", seed)
    evaluations = [nodes.evaluation(node, name, seed) for name, node in students.items()]
    return [scores, *evaluations]


def _rank_students(nodes: Nodes, seed: int) -> tuple[Node, dict[str, Node]]:
    """One student a reward rank of the teacher before RL, evaluated on the first task."""
    ablation = nodes.config.rank_ablation
    assert ablation
    teacher = nodes.teacher_sft(seed)
    traces = nodes.traces(teacher, "sft", seed, n=ablation.ranks, n_questions=ablation.n_questions)
    scores = nodes.scores(traces, teacher, "sft", seed)
    task = nodes.config.evaluation.tasks[:1]
    evaluations = {}
    for rank in range(1, ablation.ranks + 1):
        student = nodes.student_sft(f"rank-{rank}", seed, traces, scores, rank=rank)
        evaluation = nodes.evaluation(student, f"rank-{rank}", seed, tasks=task)
        evaluations[f"rank-{rank}@{seed}"] = evaluation
    return scores, evaluations
