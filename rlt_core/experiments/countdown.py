"""Figure, left: a domain that the teacher never saw, against transfer and direct RL."""

from functools import partial
from typing import Any

from rlt_core.config import Config
from rlt_core.errors import UserError
from rlt_core.experiments.nodes import Nodes
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
    """Return the report of students of zero-shot traces, students as they are, and direct RL."""
    problems_config, rl = config.countdown, config.student_grpo
    if problems_config is None or rl is None or not problems_config.data.n_test:
        raise UserError(
            f"profile {config.profile} has no countdown problems or no student_grpo; set "
            "countdown.data.source=countdown, countdown.data.n_train, countdown.data.n_test and "
            "student_grpo.steps"
        )
    nodes = Nodes(config)
    problems = nodes.questions_of(problems_config.data, TASK)
    asked: dict[str, Any] = {"tasks": (TASK,), "countdown": problems}
    base, dataset = nodes.student_base, partial(nodes.dataset_student, "dataset")

    def after_rl(start: str, seed: int) -> Node:
        model = base if start == "base" else dataset(seed)
        return nodes.student_grpo(model, f"countdown-{start}", seed, problems)

    def zero_shot(seed: int) -> Node:
        """A student of traces by a teacher that saw no countdown problem."""
        traces = nodes.traces(nodes.teacher_grpo(seed), TASK, seed, questions=problems)
        return nodes.student_sft(
            "countdown-zero-shot", seed, traces, questions=problems,
            recipe=problems_config.student_sft,
        )  # fmt: skip

    table = Table(nodes, "countdown")
    table.add("Base model", "countdown-base", base, **asked)
    for name, model, student, baseline in (
        ("Data set's student, as it is", "dataset", dataset, "base"),
        ("RLT student, as it is", "rlt", nodes.rlt_student, "dataset"),
        ("Direct RL from the base", "base+rl", partial(after_rl, "base"), "dataset"),
        ("Direct RL from the data set's student", "dataset+rl", partial(after_rl, "dataset"),
         "dataset"),
        ("Zero-shot RLT traces", "zero-shot", zero_shot, "base+rl"),
    ):  # fmt: skip
        table.add(name, f"countdown-{model}", student, baseline=f"countdown-{baseline}", **asked)
    return table.report(primary="countdown-zero-shot", overlaps=OVERLAPS)
