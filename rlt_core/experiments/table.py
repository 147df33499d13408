"""A table of the paper while its graph is being built: its rows and the nodes that fill them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlt_core.config import Config, HubModel, ModelSource
from rlt_core.experiments.nodes import Nodes
from rlt_core.graph import Node, upstream
from rlt_core.report import paper as paper_numbers
from rlt_core.stages import TableRow

BySeed = Mapping[int, Node]
"""Training seed -> model."""


def paper_size(config: Config, student: ModelSource) -> str | None:
    """Size in the paper's names of rows (`7B`) where teacher, students and data are the paper's;
    None where its numbers belong to other rows than ours."""
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

    def trained(
        self,
        name: str,
        model: str,
        by_seed: BySeed,
        paper: str | None = None,
        baseline: str | None = None,
        **evaluation: Any,
    ) -> None:
        """A model that this run trains, one of each seed. `paper`: row of the paper's table;
        `evaluation`: what differs from the config's."""
        for seed, node in by_seed.items():
            self.parts.append(self.nodes.evaluation(node, model, seed, **evaluation))
        paper = self._quoted(paper, evaluation)
        self.rows.append(TableRow(name=name, model=model, paper=paper, baseline=baseline))

    def given(
        self,
        name: str,
        model: str,
        node: Node,
        paper: str | None = None,
        baseline: str | None = None,
        **evaluation: Any,
    ) -> None:
        """A model as it is: untouched, or from elsewhere. It has no training seeds."""
        self.parts.append(self.nodes.evaluation(node, model, None, **evaluation))
        paper = self._quoted(paper, evaluation)
        self.rows.append(
            TableRow(name=name, model=model, paper=paper, baseline=baseline, trained=False)
        )

    def _quoted(self, paper: str | None, changes: Mapping[str, Any]) -> str | None:
        """The paper's row, where ours is tested as it was: on all questions, unforced."""
        evaluation = self.nodes.config.evaluation
        forced = changes.get("budget", evaluation.budget)
        return None if forced or evaluation.max_questions else paper

    def missing(self, name: str, model: str, why: str, paper: str | None = None) -> None:
        """A row that does not run."""
        self.rows.append(TableRow(name=name, model=model, paper=paper, missing=why))

    def report(self, **shown: Any) -> Node:
        """The report over all that the table needs: costs, training curves, dropped rows."""
        rows = tuple(self.rows)
        return self.nodes.report(self.title, upstream(self.parts), rows=rows, **shown)
