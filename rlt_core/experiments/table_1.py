"""Table 1, distillation: students of RLT traces against students of other traces."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlt_core.config import Config, HubModel, LargerStudent, ModelSource, StudentSFTConfig
from rlt_core.experiments.nodes import Nodes
from rlt_core.experiments.table import OfSeed, Table, paper_size
from rlt_core.graph import Node
from rlt_core.report.paper import REPOSITORIES, S1, S1K, SKY_T1, SUBSET

REFERENCES = ("Qwen/QwQ-32B", "deepseek-ai/DeepSeek-R1")
"""Models of the hub that the paper shows for orientation."""


def table_1(config: Config) -> Node:
    """The paper's rows in its order, ours among them, imported models at the end."""
    nodes = Nodes(config)
    table = Table(nodes, "table-1")
    sources = [model.source for model in config.imports.models.values()]
    imported = {source.repo for source in sources if isinstance(source, HubModel)}
    for repo in REFERENCES:
        row = REPOSITORIES[repo]
        if repo not in imported and row.lower() not in config.imports.models:
            why = f"quoted; `--set imports.models.{row.lower()}=hub:{repo}` evaluates it here"
            table.missing(row, row.lower(), why, paper=row)
    student = config.student or config.base_model
    table.add("Base model", "base", nodes.student_base, paper=_quoted(student))
    _rows(table, nodes.student_base, None, paper_size(config, student))
    if larger := config.larger_student:
        base = nodes.model(larger.model, "larger-student")
        quoted = _quoted(larger.model)
        table.add("Base model, larger", "base-large", base, paper=quoted, baseline="base")
        _rows(table, base, larger, paper_size(config, larger.model))
    for name, model in config.imports.models.items():
        table.add(
            f"Imported: {name}", name, nodes.model(model.source, name), _quoted(model.source),
            baseline="base", format=model.format,
        )  # fmt: skip
    return table.report(primary="rlt")


def _quoted(source: ModelSource) -> str | None:
    """The paper's row of a model as it is."""
    return REPOSITORIES.get(source.repo) if isinstance(source, HubModel) else None


def _rows(table: Table, base: Node, larger: LargerStudent | None, size: str | None) -> None:
    """Add the students of the subset, then those of all questions. `size`: that of the paper's
    students, which learned from 1,000 questions and from all."""
    config, papers = table.nodes.config, {SUBSET: size and f"{size}-1K", None: size}
    suffix, kind = ("-large", ", larger") if larger else ("", "")
    small = [n for n, one in config.trace_sources.items() if one.recipe == "student_sft_subset"]
    if subset := config.student_sft_subset:
        ending = (f"{suffix}-subset", f"{kind}, {subset.n_questions} questions")
        paper = papers.get(subset.n_questions)
        _Students(table, base, subset, larger, *ending, paper).add_rows(small)
    others = [name for name in config.trace_sources if not subset or name not in small]
    paper = papers.get(config.student_sft.n_questions)
    _Students(table, base, config.student_sft, larger, suffix, kind, paper).add_rows(others)


@dataclass(frozen=True)
class _Students:
    """Students of one size on one amount of data."""

    table: Table
    base: Node
    recipe: StudentSFTConfig
    larger: LargerStudent | None
    suffix: str
    """End of the names of their variants: `rlt-large-subset`."""
    kind: str
    """End of their names in the table: `, larger, 1000 questions`."""
    paper: str | None
    """End of the paper's names: `7B-1K`; None where the paper has no such students."""

    def add_rows(self, sources: Iterable[str]) -> None:
        """Add students of other data sets' traces, of solutions alone (without which the value of a
        trace cannot be told from that of the solutions), of the data set's traces, of the RLT's."""
        for name in sources:
            self._add_source(name)
        solutions, dataset, rlt = (
            f"{traces}{self.suffix}" for traces in ("solution-only", "dataset", "rlt")
        )
        solved = partial(self._student, solutions, empty_thought=True)
        self._add("Solutions alone", solutions, solved, dataset)
        base = "base-large" if self.larger else "base"
        of_data = self.table.nodes.dataset_student
        student = partial(of_data, dataset, base=self.base, recipe=self.recipe)
        self._add("Data set's traces", dataset, student, base, "Bespoke")
        self._add("RLT traces", rlt, partial(self._rlt_student, rlt), dataset, "RLT")

    def _add(
        self, name: str, variant: str, student: OfSeed, baseline: str, paper: str | None = None
    ) -> None:
        quoted = f"{paper}-{self.paper}" if paper and self.paper else None
        self.table.add(f"{name}{self.kind}", variant, student, quoted, baseline)

    def _student(self, variant: str, seed: int, *traces: Node, **choice: Any) -> Node:
        nodes = self.table.nodes
        return nodes.student_sft(
            variant, seed, *traces, base=self.base, recipe=self.recipe, **choice
        )

    def _rlt_student(self, variant: str, seed: int) -> Node:
        nodes = self.table.nodes
        if self.larger is None:
            return nodes.rlt_student(seed, variant, self.recipe)
        teacher = nodes.teacher_grpo(seed)
        traces = nodes.traces(teacher, "rlt-choice", seed, n=self.larger.traces)
        scores = nodes.scores(traces, teacher, "rlt-choice", seed)
        return self._student(variant, seed, traces, scores, fits=True)

    def _add_source(self, name: str) -> None:
        """Add the students of another data set: a row for each budget of their tests."""
        source = self.table.nodes.config.trace_sources[name]
        variant, baseline = f"{name}{'-large' if self.larger else ''}", f"dataset{self.suffix}"
        questions = self.table.nodes.questions_of(source.data, name)
        student = partial(self._student, variant, questions=questions)
        row = f"Traces of {name}{self.kind}"
        if (source.data.source, self.paper) == (S1K, "32B-1K"):
            why = "quoted; with how many continuations, the paper does not say"
            self.table.missing(S1, "s1-32b", why, paper=S1)
        if not source.budgets:
            theirs = (source.data.source, self.paper) == (SKY_T1, "32B")
            self.table.add(row, variant, student, "Sky-T1-32B" if theirs else None, baseline)
        for budget in source.budgets:
            times = f"{budget.continuations} continuation{'s' * (budget.continuations != 1)}"
            self.table.add(
                f"{row}, budget forcing, {times}", f"{variant}-continued-{budget.continuations}",
                student, baseline=baseline, budget=budget,
            )  # fmt: skip
