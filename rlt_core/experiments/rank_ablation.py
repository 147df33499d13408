"""Figure, right: does the reward's rank of a trace predict what a student learns from it?

Completions of the teacher before RL are ranked within each question, and a student is trained on
the traces of each rank. Besides the reward, traces are ranked by baselines and by what else could
explain the result (a random order, length, correctness, the number of tokens).
"""

from functools import partial

from rlt_core.config import Config, RankedSet
from rlt_core.data.trace_selection import order_of
from rlt_core.errors import UserError
from rlt_core.experiments.nodes import Nodes
from rlt_core.experiments.table import Table
from rlt_core.graph import Node


def rank_ablation(config: Config) -> Node:
    """Students of every rank of every set, the data set's student and the base."""
    nodes = Nodes(config)
    if config.rank_ablation is None:
        raise UserError(f"profile {config.profile} has no rank_ablation; set rank_ablation.ranks")
    table = Table(nodes, "rank-ablation")
    table.add("Base model", "base", nodes.student_base)
    dataset = partial(nodes.dataset_student, "dataset")
    table.add("Data set's traces", "dataset", dataset, baseline="base")
    task = config.evaluation.tasks[:1]
    for ranked_by in config.rank_ablation.sets:
        table.parts += rank_students(nodes, ranked_by)
    first = config.rank_ablation.sets[0]
    table.add(
        "Rank 1, teacher before RL", rank_variant(first, 1),
        lambda seed: _student(nodes, seed, first, 1), baseline="dataset", tasks=task,
    )  # fmt: skip
    return table.report()


def rank_variant(ranked_by: RankedSet, rank: int) -> str:
    """Name of the student of a rank."""
    return f"rank-{rank}" if ranked_by == "reward" else f"{ranked_by}-rank-{rank}"


def rank_students(nodes: Nodes, ranked_by: RankedSet) -> list[Node]:
    """The evaluations of one student a rank on the first task, and their statistics."""
    ablation = nodes.config.rank_ablation
    assert ablation
    task = nodes.config.evaluation.tasks[:1]
    scores = {seed: _scored(nodes, seed)[1] for seed in nodes.config.seeds}
    evaluations = {
        f"rank-{rank}@{seed}": nodes.evaluation(
            _student(nodes, seed, ranked_by, rank), rank_variant(ranked_by, rank), seed, tasks=task
        )
        for seed in nodes.config.seeds
        for rank in range(1, ablation.ranks + 1)
    }
    return [*evaluations.values(), nodes.rank_statistics(ranked_by, scores, evaluations)]


def _scored(nodes: Nodes, seed: int) -> tuple[Node, Node]:
    """Completions of the teacher before RL and their scores."""
    ablation = nodes.config.rank_ablation
    assert ablation
    teacher = nodes.teacher_sft(seed)
    traces = nodes.traces(teacher, "sft", seed, n=ablation.ranks, n_questions=ablation.n_questions)
    return traces, nodes.scores(traces, teacher, "sft", seed)


def _student(nodes: Nodes, seed: int, ranked_by: RankedSet, rank: int) -> Node:
    traces, scores = _scored(nodes, seed)
    return nodes.student_sft(
        rank_variant(ranked_by, rank), seed, traces, scores,
        rank=rank, order=order_of(ranked_by), token_matched=ranked_by == "token-matched",
    )  # fmt: skip
