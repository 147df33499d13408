"""The whole pipeline once: teacher, its traces, students of them, and what they score."""

from rlt_core.config import Config
from rlt_core.experiments.nodes import Nodes
from rlt_core.experiments.rank_ablation import rank_students
from rlt_core.graph import Node, upstream

VALIDATION_SAMPLES = 4
"""Completions a held-out question on which the teachers' rewards are compared."""


def full_pipeline(config: Config) -> Node:
    """Every stage: the report's inputs are the graph."""
    nodes = Nodes(config)
    parts = [nodes.evaluation(nodes.student_base, "base", None)]
    for seed in config.seeds:
        parts += _teachers_on_held_out_questions(nodes, seed)
        parts += _students(nodes, seed)
    if config.rank_ablation and config.rank_ablation.in_full_pipeline:
        parts += rank_students(nodes, config.rank_ablation.sets[0])
    for name, imported in config.imports.models.items():
        model = nodes.model(imported.source, name)
        parts.append(nodes.evaluation(model, name, None, format=imported.format))
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
    """Students of the RLT's traces, also refined ones, of the data set's, of imported ones and of
    those of an LLM; RL from the first."""
    traces, scores = nodes.rlt_traces(seed)
    rlt = nodes.rlt_student(seed)
    students = [("rlt", rlt)]
    if nodes.config.teacher_sft.traces == "dataset":
        students.append(("dataset", nodes.student_sft("dataset", seed)))
    imported = nodes.config.imports.traces.items()
    sets = [(name, nodes.imported_traces(name, path)) for name, path in imported]
    if refinement := nodes.config.trace_refinement:
        sets.append((refinement.name, nodes.refined_traces(traces, refinement.name, seed)))
    if teacher := nodes.config.endpoint_teacher:
        sets.append((teacher.name, nodes.endpoint_traces(teacher.name, seed)))
    students += [(name, nodes.student_sft(name, seed, learned)) for name, learned in sets]
    if nodes.config.student_grpo:
        students.append(("rlt+rl", nodes.student_grpo(rlt, "rlt", seed)))
    return [scores, *(nodes.evaluation(node, name, seed) for name, node in students)]
