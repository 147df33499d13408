"""Table 1, distillation: students of RLT traces against students of other traces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rlt_core.config import Config, HubModel, LargerStudent, ModelSource, StudentSFTConfig
from rlt_core.experiments.nodes import Nodes
from rlt_core.experiments.table import Table, paper_size
from rlt_core.graph import Node
from rlt_core.report.paper import REPOSITORIES, S1, S1K, SKY_T1, SUBSET

REFERENCES = ("Qwen/QwQ-32B", "deepseek-ai/DeepSeek-R1")
"""Models of the hub that the paper shows for orientation."""


@dataclass(frozen=True)
class _Students:
    """Students of one size on one amount of data."""

    suffix: str
    """End of the names of their variants: `rlt-large-subset`."""
    said: str
    """Behind their names in the table."""
    base: Node
    recipe: StudentSFTConfig
    sources: tuple[str, ...]
    """Other data sets of which there are such students."""
    larger: LargerStudent | None
    paper: str | None
    """Behind the paper's names: `7B-1K`; None where the paper has no such students."""

    def quoted(self, kind: str) -> str | None:
        """The paper's row of these students."""
        return f"{kind}-{self.paper}" if self.paper else None


def table_1(config: Config) -> Node:
    """The paper's rows in its order, ours among them, imported models at the end."""
    nodes = Nodes(config)
    table = Table(nodes, "table-1")
    sources = [model.source for model in config.imports.models.values()]
    imported = {source.repo for source in sources if isinstance(source, HubModel)}
    for repo in REFERENCES:
        row = REPOSITORIES[repo]
        if repo not in imported:
            why = f"quoted; `--set imports.models.{row.lower()}=hub:{repo}` evaluates it here"
            table.missing(row, row.lower(), why, paper=row)
    student = config.student or config.base_model
    table.given("Base model", "base", nodes.student_base, paper=_quoted(student))
    _rows(table, nodes.student_base, None, paper_size(config, student))
    if larger := config.larger_student:
        base = nodes.model(larger.model, "larger-student")
        quoted = _quoted(larger.model)
        table.given("Base model, larger", "base-large", base, paper=quoted, baseline="base")
        _rows(table, base, larger, paper_size(config, larger.model))
    for name, model in config.imports.models.items():
        table.given(
            f"Imported: {name}", name, nodes.model(model.source, name), _quoted(model.source),
            baseline="base", format=model.format,
        )  # fmt: skip
    return table.report(primary="rlt")


def _quoted(source: ModelSource) -> str | None:
    """The paper's row of a model as it is."""
    return REPOSITORIES.get(source.repo) if isinstance(source, HubModel) else None


def _rows(table: Table, base: Node, larger: LargerStudent | None, size: str | None) -> None:
    for students in _kinds(table.nodes.config, base, larger, size):
        _source_rows(table, students)
        _solution_row(table, students)
        _dataset_row(table, students)
        _rlt_row(table, students)


def _kinds(
    config: Config, base: Node, larger: LargerStudent | None, size: str | None
) -> Iterator[_Students]:
    """The subset's students, then those of all questions."""
    suffix, said = ("-large", ", larger") if larger else ("", "")

    def paper(recipe: StudentSFTConfig) -> str | None:
        return {SUBSET: size and f"{size}-1K", None: size}.get(recipe.n_questions)

    small: tuple[str, ...] = ()
    if subset := config.student_sft_subset:
        sources = config.trace_sources.items()
        small = tuple(name for name, one in sources if one.recipe == "student_sft_subset")
        said_subset = f"{said}, {subset.n_questions} questions"
        yield _Students(f"{suffix}-subset", said_subset, base, subset, small, larger, paper(subset))
    recipe = config.student_sft
    others = tuple(name for name in config.trace_sources if name not in small)
    yield _Students(suffix, said, base, recipe, others, larger, paper(recipe))


def _source_rows(table: Table, students: _Students) -> None:
    nodes = table.nodes
    larger = "-large" if students.larger else ""
    for name in students.sources:
        source, variant = nodes.config.trace_sources[name], f"{name}{larger}"
        questions = nodes.questions_of(source.data, name)

        def student(seed: int, variant: str = variant, questions: Node = questions) -> Node:
            return nodes.student_sft(
                variant, seed, base=students.base, recipe=students.recipe, questions=questions
            )

        said, baseline = f"Traces of {name}{students.said}", f"dataset{students.suffix}"
        if (source.data.source, students.paper) == (S1K, "32B-1K"):
            why = "quoted; with how many continuations, the paper does not say"
            table.missing(S1, "s1-32b", why, paper=S1)
        if not source.budgets:
            theirs = (source.data.source, students.paper) == (SKY_T1, "32B")
            table.trained(said, variant, student, "Sky-T1-32B" if theirs else None, baseline)
        for budget in source.budgets:
            times = f"{budget.continuations} continuation{'s' * (budget.continuations != 1)}"
            table.trained(
                f"{said}, budget forcing, {times}",
                f"{variant}-continued-{budget.continuations}",
                student,
                baseline=baseline,
                budget=budget,
            )


def _solution_row(table: Table, students: _Students) -> None:
    """Without it the value of a trace cannot be told from that of the questions' solutions."""
    nodes, variant = table.nodes, f"solution-only{students.suffix}"

    def student(seed: int) -> Node:
        return nodes.student_sft(
            variant, seed, base=students.base, recipe=students.recipe, empty_thought=True
        )

    table.trained(
        f"Solutions alone{students.said}",
        variant,
        student,
        baseline=f"dataset{students.suffix}",
    )


def _dataset_row(table: Table, students: _Students) -> None:
    nodes, variant = table.nodes, f"dataset{students.suffix}"

    def student(seed: int) -> Node:
        return nodes.student_sft(variant, seed, base=students.base, recipe=students.recipe)

    table.trained(
        f"Data set's traces{students.said}",
        variant,
        student,
        paper=students.quoted("Bespoke"),
        baseline="base-large" if students.larger else "base",
    )


def _rlt_row(table: Table, students: _Students) -> None:
    nodes, variant = table.nodes, f"rlt{students.suffix}"

    def student(seed: int) -> Node:
        if students.larger is None:
            return nodes.rlt_student(seed, variant, students.recipe)
        teacher = nodes.teacher_grpo(seed)
        traces = nodes.traces(teacher, "rlt-choice", seed, n=students.larger.traces)
        scores = nodes.scores(traces, teacher, "rlt-choice", seed)
        return nodes.student_sft(
            variant, seed, traces, scores, base=students.base, recipe=students.recipe, fits=True
        )

    table.trained(
        f"RLT traces{students.said}",
        variant,
        student,
        paper=students.quoted("RLT"),
        baseline=f"dataset{students.suffix}",
    )
