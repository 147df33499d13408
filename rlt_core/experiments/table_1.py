"""Table 1, distillation: students of RLT traces against students of other traces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rlt_core.config import Config, HubModel, LargerStudent, StudentSFTConfig
from rlt_core.experiments.nodes import Nodes
from rlt_core.experiments.students import rlt_student
from rlt_core.experiments.table import Table
from rlt_core.graph import Node
from rlt_core.report.paper import REPOSITORIES

REFERENCES = ("Qwen/QwQ-32B", "deepseek-ai/DeepSeek-R1")
"""Models of the hub that the paper shows for orientation."""
OF_SOURCES = {
    ("s1", "32B-1K"): "s1-32B + budget forcing",
    ("sky-t1", "32B"): "Sky-T1-32B",
}
"""Trace source and students -> the paper's row, which are of 32B only."""


@dataclass(frozen=True)
class _Students:
    """Students of one size on one amount of data."""

    suffix: str
    """Of their variants: `rlt-large-subset`."""
    said: str
    """Behind their names in the table."""
    base: Node
    recipe: StudentSFTConfig
    sources: tuple[str, ...]
    """Other data sets of which there are such students."""
    larger: LargerStudent | None
    paper: str
    """Behind the paper's names: `7B-1K`."""


def table_1(config: Config) -> Node:
    """The paper's rows in its order, ours among them, imported models at the end."""
    nodes = Nodes(config)
    table = Table(nodes, "table-1")
    imported = {m.repo for m in config.imports.models.values() if isinstance(m, HubModel)}
    for repo in REFERENCES:
        row = REPOSITORIES[repo]
        if repo not in imported:
            why = f"quoted; `--set imports.models.{row.lower()}=hub:{repo}` evaluates it here"
            table.missing(row, row.lower(), why, paper=row)
    size = "32B" if config.profile.startswith("paper-32b") else "7B"
    table.given("Base model", "base", nodes.student_base, paper=f"Qwen2.5-{size}-Instruct")
    _rows(table, nodes.student_base, None, size)
    if larger := config.larger_student:
        base = nodes.model(larger.model, "larger-student")
        table.given(
            "Base model, larger", "base-large", base, paper="Qwen2.5-32B-Instruct", baseline="base"
        )
        _rows(table, base, larger, "32B")
    for name, source in config.imports.models.items():
        paper = REPOSITORIES.get(source.repo) if isinstance(source, HubModel) else None
        table.given(f"Imported: {name}", name, nodes.model(source, name), paper, baseline="base")
    return table.report(primary="rlt")


def _rows(table: Table, base: Node, larger: LargerStudent | None, size: str) -> None:
    for students in _kinds(table.nodes.config, base, larger, size):
        _source_rows(table, students)
        _solution_row(table, students)
        _dataset_row(table, students)
        _rlt_row(table, students)


def _kinds(
    config: Config, base: Node, larger: LargerStudent | None, size: str
) -> Iterator[_Students]:
    """The subset's students, then those of all questions."""
    suffix, said = ("-large", ", larger") if larger else ("", "")
    small: tuple[str, ...] = ()
    if subset := config.student_sft_subset:
        sources = config.trace_sources.items()
        small = tuple(name for name, one in sources if one.recipe == "student_sft_subset")
        said_subset = f"{said}, {subset.n_questions} questions"
        paper = f"{size}-1K"
        yield _Students(f"{suffix}-subset", said_subset, base, subset, small, larger, paper)
    recipe = config.student_sft
    others = tuple(name for name in config.trace_sources if name not in small)
    paper = f"{size}-1K" if recipe.n_questions else size
    yield _Students(suffix, said, base, recipe, others, larger, paper)


def _by_seed(config: Config, student: Callable[[int], Node]) -> dict[int, Node]:
    return {seed: student(seed) for seed in config.seeds}


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

        forced = ", budget forcing" if source.budget else ""
        table.trained(
            f"Traces of {name}{students.said}{forced}",
            variant,
            _by_seed(nodes.config, student),
            paper=OF_SOURCES.get((name, students.paper)),
            baseline=f"dataset{students.suffix}",
            budget=source.budget,
        )


def _solution_row(table: Table, students: _Students) -> None:
    """Without it the value of a trace cannot be told from that of the questions' solutions."""
    nodes, variant = table.nodes, f"solution-only{students.suffix}"

    def student(seed: int) -> Node:
        return nodes.student_sft(
            variant, seed, base=students.base, recipe=students.recipe, thoughtless=True
        )

    table.trained(
        f"Solutions alone{students.said}",
        variant,
        _by_seed(nodes.config, student),
        baseline=f"dataset{students.suffix}",
    )


def _dataset_row(table: Table, students: _Students) -> None:
    nodes, variant = table.nodes, f"dataset{students.suffix}"

    def student(seed: int) -> Node:
        return nodes.student_sft(variant, seed, base=students.base, recipe=students.recipe)

    table.trained(
        f"Data set's traces{students.said}",
        variant,
        _by_seed(nodes.config, student),
        paper=f"Bespoke-{students.paper}",
        baseline="base-large" if students.larger else "base",
    )


def _rlt_row(table: Table, students: _Students) -> None:
    nodes, variant = table.nodes, f"rlt{students.suffix}"

    def student(seed: int) -> Node:
        if students.larger is None:
            return rlt_student(nodes, seed, variant, students.recipe)
        teacher = nodes.teacher_grpo(seed)
        traces = nodes.traces(teacher, "rlt-choice", seed, n=students.larger.traces)
        scores = nodes.scores(traces, teacher, "rlt-choice", seed)
        return nodes.student_sft(
            variant, seed, traces, scores, base=students.base, recipe=students.recipe, fits=True
        )

    table.trained(
        f"RLT traces{students.said}",
        variant,
        _by_seed(nodes.config, student),
        paper=f"RLT-{students.paper}",
        baseline=f"dataset{students.suffix}",
    )
