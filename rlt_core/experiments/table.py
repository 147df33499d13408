"""A table of the paper while its graph is being built: its rows and the nodes that fill them."""

from collections.abc import Callable
from typing import Any

from rlt_core.config import Config, HubModel, ModelSource
from rlt_core.experiments.nodes import Nodes, NoTraces
from rlt_core.graph import Node, upstream
from rlt_core.report import paper as paper_numbers
from rlt_core.stages import TableRow

OfSeed = Callable[[int], Node]
"""A function from a training seed to a node."""


def paper_size(config: Config, student: ModelSource) -> str | None:
    """Return the size in the paper's names of rows (`7B`) where teacher, students and data are the
    paper's, else None: its numbers then belong to other rows than ours."""
    models = [one.repo if isinstance(one, HubModel) else "" for one in (config.base_model, student)]
    if models[0] != paper_numbers.TEACHER or config.data.source != paper_numbers.DATA:
        return None
    return paper_numbers.STUDENTS.get(models[1])


class Table:
    """Rows in the paper's order; each model is evaluated when its row is added."""

    def __init__(self, nodes: Nodes, title: str) -> None:
        self.nodes = nodes
        self.title = title
        self.rows: list[TableRow] = []
        self.parts: list[Node] = []

    def add(
        self,
        name: str,
        model: str,
        student: OfSeed | Node,
        paper: str | None = None,
        baseline: str | None = None,
        **evaluation: Any,
    ) -> None:
        """Add a model that this run trains, once per seed, or a given one without training seeds.
        `paper`: row of the paper's table; `evaluation`: fields that differ from the config's. A
        student of traces that the data does not have is a row with the reason."""
        trained = not isinstance(student, Node)
        if isinstance(student, Node):
            made: dict[int | None, Node] = {None: student}
        else:
            try:
                made = {seed: student(seed) for seed in self.nodes.config.seeds}
            except NoTraces as error:
                return self.missing(name, model, str(error), paper)
        for seed, node in made.items():
            self.parts.append(self.nodes.evaluation(node, model, seed, **evaluation))
        ours = self.nodes.config.evaluation
        if evaluation.get("budget", ours.budget) or ours.max_questions:
            paper = None  # the paper's model was asked all questions, without a budget
        self.rows.append(
            TableRow(name=name, model=model, paper=paper, baseline=baseline, trained=trained)
        )

    def missing(self, name: str, model: str, why: str, paper: str | None = None) -> None:
        """Add a row that does not run."""
        self.rows.append(TableRow(name=name, model=model, paper=paper, missing=why))

    def report(self, **shown: Any) -> Node:
        """Return the report over all nodes of the table: costs, training curves, dropped rows."""
        rows = tuple(self.rows)
        return self.nodes.report(self.title, upstream(self.parts), rows=rows, **shown)
