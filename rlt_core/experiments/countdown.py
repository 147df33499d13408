"""Figure, left: a domain that the teacher never saw, against transfer and direct RL."""

from __future__ import annotations

from typing import Any

from rlt_core.config import Config
from rlt_core.errors import UserError
from rlt_core.experiments.nodes import Nodes
from rlt_core.experiments.students import rlt_student
from rlt_core.experiments.table import Table
from rlt_core.graph import Node

TASK = "countdown"
OVERLAPS = (
    ("countdown-base+rl", "countdown-dataset"),
    ("countdown-dataset+rl", "countdown-dataset"),
    ("countdown-zero-shot", "countdown-base+rl"),
    ("countdown-zero-shot", "countdown-dataset"),
)
"""Pairs of models whose solved problems are compared; the paper has the first."""


def countdown(config: Config) -> Node:
    """Students of zero-shot traces, students as they are, direct RL."""
    if config.countdown is None or config.student_grpo is None:
        raise UserError(
            f"profile {config.profile} has no countdown problems or no student_grpo; set "
            "countdown.data.source=countdown, countdown.data.n_train, countdown.data.n_test and "
            "student_grpo.steps"
        )
    nodes = Nodes(config)
    problems = nodes.questions_of(config.countdown.data, TASK)
    asked: dict[str, Any] = {"tasks": (TASK,), "countdown": problems}
    seeds = config.seeds
    table = Table(nodes, "countdown")
    table.given("Base model", "countdown-base", nodes.student_base, **asked)
    data = {seed: nodes.student_sft("dataset", seed) for seed in seeds}
    table.trained(
        "Data set's student, as it is", "countdown-dataset", data, baseline="countdown-base",
        **asked,
    )  # fmt: skip
    rlt = {seed: rlt_student(nodes, seed) for seed in seeds}
    table.trained(
        "RLT student, as it is", "countdown-rlt", rlt, baseline="countdown-dataset", **asked
    )
    starts = {
        "base": ("base", dict.fromkeys(seeds, nodes.student_base)),
        "dataset": ("data set's student", data),
    }
    for start, (said, models) in starts.items():
        trained = {
            seed: nodes.student_grpo(model, f"countdown-{start}", seed, problems)
            for seed, model in models.items()
        }
        table.trained(
            f"Direct RL from the {said}", f"countdown-{start}+rl", trained,
            baseline="countdown-dataset", **asked,
        )  # fmt: skip
    zero_shot = {seed: _zero_shot_student(nodes, problems, seed) for seed in seeds}
    table.trained(
        "Zero-shot RLT traces", "countdown-zero-shot", zero_shot, baseline="countdown-base+rl",
        **asked,
    )  # fmt: skip
    return table.report(primary="countdown-zero-shot", overlaps=OVERLAPS)


def _zero_shot_student(nodes: Nodes, problems: Node, seed: int) -> Node:
    """Of the traces that a teacher writes which has seen no countdown problem."""
    teacher = nodes.teacher_grpo(seed)
    traces = nodes.traces(teacher, TASK, seed, questions=problems)
    assert nodes.config.countdown
    return nodes.student_sft(
        "countdown-zero-shot", seed, traces, questions=problems,
        recipe=nodes.config.countdown.student_sft,
    )  # fmt: skip
