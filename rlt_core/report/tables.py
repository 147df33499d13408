"""Cells and rows of the report's tables that take more than an expression in `report.md.jinja`.
The paper's numbers have columns of their own, and each says that it is quoted."""

from collections import Counter
from collections.abc import Mapping, Sequence

from rlt_core.evaluation.comparisons import Ratio
from rlt_core.evaluation.intervals import Estimate
from rlt_core.report import paper, texts
from rlt_core.report.experiment import Experiment
from rlt_core.report.inputs import Part, Row
from rlt_core.report.ranks import UTILITY
from rlt_core.store import Ref


# ---------------------------------------------------------------- an experiment
def task_name(task: str) -> str:
    """Name of a task's table; the mean is no task."""
    return "mean over tasks" if task == paper.MEAN else task


def quoted(row: Row, column: str = "paper_percent") -> str:
    """`23.3 (quoted)`, as the paper prints it; says which numbers the paper itself quotes."""
    value = row[column]
    if value is None:
        return texts.NOTHING
    is_mean = column == "paper_mean_percent" or row["task"] == paper.MEAN
    source = "quoted; the paper quotes it, too" if row["paper_from_others"] else "quoted"
    return f"{value:.{2 if is_mean else 1}f} ({source})"


def gain_share(ratio: Ratio | None) -> str:
    """`90% [75%, 108%]`, or in words where the set has no end or there was no gain."""
    if ratio is None:
        return texts.NOTHING
    if ratio.denominator.value < 0:
        loss = -100 * ratio.denominator.value
        return f"none: the data-set student is {loss:.1f} points below its base"
    value = "not defined" if ratio.value is None else f"{100 * ratio.value:.0f}%"
    if ratio.bounded:
        ((low, high),) = ratio.intervals
        return texts.Number(f"{value} [{100 * low:.0f}%, {100 * high:.0f}%]")
    return f"{value}, unbounded: the data-set student's gain may be nothing"


def overview(experiment: Experiment) -> list[Row]:
    """Models by tasks: the paper's number where the task is one of the paper's, and ours; without
    the tasks on which all are alike."""
    shown, suffix = [], ", ours" if experiment.quotes else ""
    tables = [rows for task, rows in experiment.tables.items() if task not in experiment.alike]
    for rows in zip(*tables, strict=True):
        line: Row = {"model": rows[0]["row"]}
        for row in rows:
            task = row["task"]
            if task != paper.MEAN:
                line[f"{task}, the paper"] = quoted(row)
            if task:
                line[f"{task_name(task)}{suffix}"] = ours(row, row["method"] or row["value"])
        line["difference"] = texts.points(rows[-1]["method_difference"] or rows[-1]["difference"])
        line["against"] = rows[-1]["against"] or texts.NOTHING
        line["mean of its three benchmarks, the paper"] = quoted(rows[0], "paper_mean_percent")
        line["the paper's row"] = rows[0]["paper_row"] or texts.NOTHING
        line["did not run"] = rows[0]["missing"] or texts.NOTHING
        shown.append(line)
    return shown


def ours(row: Row, score: Estimate | None) -> str:
    """Our score, or why there is none."""
    return "no graded answer" if score is None and row["evaluation_keys"] else texts.percent(score)


def with_methods(rows: Sequence[Row]) -> bool:
    """Whether a method's interval is another than that of its checkpoints."""
    return any(row["method"] not in (None, row["value"]) for row in rows)


def both_p(row: Row, p: str) -> texts.Number:
    """`0.012; 0.024`: a p-value and Holm's, or that it is the primary contrast's."""
    if row[p] is None:
        return texts.NOTHING
    adjusted = texts.Number("primary") if row["primary"] else texts.p_value(row[f"{p}_holm"])
    return texts.joined([texts.p_value(row[p]), adjusted])


def rank_statistic(ranks: Row, name: str) -> str:
    """A statistic with its interval, or in words where it is not defined."""
    if found := ranks["statistics"].get(name):
        return texts.number(found["value"])
    return texts.NOTHING if name == UTILITY else "not defined: all students have the same score"


# ---------------------------------------------------------------- where it comes from
def counts(part: Part, table: str, column: str) -> str:
    """Return the number of rows of a table with each value."""
    found = Counter(row[column] for row in part.rows(table, column))
    return ", ".join(f"{count} {name}" for name, count in found.items()) or "none"


def made_from(inputs: Mapping[str, Ref]) -> texts.Markdown:
    """Names and keys of an artifact's inputs."""
    return texts.Markdown(
        ", ".join(f"{texts.cell(name)} {texts.code(ref.key)}" for name, ref in inputs.items())
    )
