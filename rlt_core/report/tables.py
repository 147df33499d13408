"""Cells and rows of the report's tables that take more than an expression in `report.md.jinja`.
The paper's numbers have columns of their own, and each says that it is quoted."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from rich.filesize import decimal

from rlt_core.evaluation.comparisons import Ratio
from rlt_core.evaluation.intervals import Estimate
from rlt_core.report import paper
from rlt_core.report.compared import PARTS
from rlt_core.report.experiment import Experiment
from rlt_core.report.inputs import Part, Row
from rlt_core.report.ranks import NOISE, RankAblation
from rlt_core.report.texts import (
    NOTHING,
    Markdown,
    Number,
    cell,
    code,
    codes,
    duration,
    joined,
    number,
    p_value,
    percent,
    points,
    several,
)
from rlt_core.store import Manifest, Ref

UNGRADED = "no graded answer"


# ---------------------------------------------------------------- an experiment
def task_name(task: str) -> str:
    """Name of a task's table; the mean is no task."""
    return "mean over tasks" if task == paper.MEAN else task


def quoted(row: Row, column: str = "paper_percent") -> str:
    """`23.3 (quoted)`, as the paper prints it; says which numbers the paper itself quotes."""
    percent = row[column]
    if percent is None:
        return NOTHING
    is_mean = column == "paper_mean_percent" or row["task"] == paper.MEAN
    source = "quoted; the paper quotes it, too" if row["paper_from_others"] else "quoted"
    return f"{percent:.{2 if is_mean else 1}f} ({source})"


def share(ratio: Ratio | None) -> str:
    """`90% [75%, 108%]`, or in words where the set has no end or there was no gain."""
    if ratio is None:
        return NOTHING
    if ratio.denominator.value < 0:
        loss = -100 * ratio.denominator.value
        return f"none: the data-set student is {loss:.1f} points below its base"
    value = "not defined" if ratio.value is None else f"{100 * ratio.value:.0f}%"
    if ratio.bounded:
        ((low, high),) = ratio.intervals
        return Number(f"{value} [{100 * low:.0f}%, {100 * high:.0f}%]")
    possible = "any share is possible"
    if len(ratio.intervals) == 2:
        (_, low), (high, _) = ratio.intervals
        possible = f"all but {100 * low:.0f}% to {100 * high:.0f}% is possible"
    return f"{value}; {possible}: the data-set student's gain may be nothing"


def overview(experiment: Experiment, alike: Collection[str]) -> list[Row]:
    """Models by tasks: the paper's number where the task is one of the paper's, and ours; without
    the tasks on which all are `alike`."""
    shown, ours = [], ", ours" if experiment.quotes else ""
    tables = [rows for task, rows in experiment.tables.items() if task not in alike]
    for rows in zip(*(tables or experiment.tables.values()), strict=True):
        line: Row = {"model": rows[0]["row"]}
        for row in rows:
            task = row["task"]
            if task != paper.MEAN:
                line[f"{task}, the paper"] = quoted(row)
            if task:
                line[f"{task_name(task)}{ours}"] = _ours(row, row["method"] or row["value"])
        last, prefix = rows[-1], "method_" if rows[-1]["method_difference"] else ""
        line["difference"] = points(last[f"{prefix}difference"])
        line["against"] = last["against"] or NOTHING
        line["mean of its three benchmarks, the paper"] = quoted(rows[0], "paper_mean_percent")
        line["the paper's row"] = rows[0]["paper_row"] or NOTHING
        line["did not run"] = rows[0]["missing"] or NOTHING
        shown.append(line)
    return shown


def _ours(row: Row, score: Estimate | None) -> str:
    return UNGRADED if score is None and row["evaluation_keys"] else percent(score)


def task_table(rows: Sequence[Row]) -> list[Row]:
    """All that is known of each model on one task, without counts that are all 0 and method
    intervals that are those of the checkpoints."""
    equal = [
        name
        for name, is_equal in {
            "ungraded": not any(row["ungraded"] for row in rows),
            "grader failed (wrong)": not any(row["grader_failed"] for row in rows),
            "ours, this method": all(row["method"] in (None, row["value"]) for row in rows),
        }.items()
        if is_equal
    ]
    return [_task_row(row) | dict.fromkeys(equal, NOTHING) for row in rows]


def _task_row(row: Row) -> Row:
    by_seed, scored = row["by_seed"] or {}, row["value"] is not None
    samples = "several" if row["samples"] is None else row["samples"]
    sizes = Number(f"{row['questions']} × {samples} × {row['seeds']}")  # noqa: RUF001
    missing = f"did not run: {row['missing']}"
    return {
        "model": row["row"],
        "the paper": quoted(row),
        "ours, this checkpoint": missing if row["missing"] else _ours(row, row["value"]),
        "ours, this method": percent(row["method"]),
        "by seed": several(list(by_seed.values()), percent),
        "questions × samples × seeds": sizes if scored else NOTHING,  # noqa: RUF001
        "ungraded": row["ungraded"] if scored else NOTHING,
        "grader failed (wrong)": row["grader_failed"] if scored else NOTHING,
        "against": row["against"] or NOTHING,
        "difference, these checkpoints": points(row["difference"]),
        "p; Holm": _p(row, "p"),
        "difference, the method": points(row["method_difference"]),
        "p; Holm, the method": _p(row, "method_p"),
        "detectable": percent(row["detectable"]),
        "share of the data-set student's gain": share(row["gain"]),
        "key of the model": codes(row["model_keys"] or ()),
        "key of the evaluation": codes(row["evaluation_keys"] or ()),
    }


def _p(row: Row, p: str) -> Number:
    if row[p] is None:
        return NOTHING
    adjusted = Number("primary") if row["primary"] else p_value(row[f"{p}_holm"])
    return joined([p_value(row[p]), adjusted])


# ---------------------------------------------------------------- overlaps
MEASURE_NAMES = {
    "ours_in_theirs": "first's also solved by second",
    "theirs_in_ours": "second's also solved by first",
    "jaccard": "Jaccard",
}


# ---------------------------------------------------------------- trace sets and ranks
def parts_of_both(one: Row, other: Row, names: tuple[str, str]) -> list[Row]:
    """The parts of the reward of two traces, where either has them."""
    return [
        {"part": part, names[0]: number(one[part]), names[1]: number(other[part])}
        for part in PARTS
        if one[part] is not None or other[part] is not None
    ]


def set_name(ranks: RankAblation) -> str:
    """Name of a set of ranks."""
    return f"{NOISE} (the noise floor)" if ranks.ranked_by == NOISE else ranks.ranked_by


def rank_statistic(ranks: RankAblation, name: str) -> str:
    """A statistic with its interval, or in words where it is not defined."""
    found = ranks.statistic(name)
    if found is None:
        return NOTHING
    if found.value is None or not math.isfinite(found.value):
        return "not defined: all students have the same score"
    return number(found)


# ---------------------------------------------------------------- where it comes from
def counts(part: Part, table: str, column: str) -> str:
    """Return the number of rows of a table with each value."""
    found = Counter(row[column] for row in part.rows(table, column))
    return ", ".join(f"{count} {name}" for name, count in found.items()) or "none"


def cost_table(nodes: Iterable[Part]) -> list[Row]:
    """Time and size by stage, and of all."""
    stages: dict[str, list[Manifest]] = defaultdict(list)
    for part in nodes:
        stages[part.stage].append(part.manifest)
    stages["all"] = [part.manifest for part in nodes]
    return [
        {
            "stage": stage, "artifacts": len(made),
            "total time": duration(sum(one.seconds for one in made)),
            "longest": duration(max(one.seconds for one in made)),
            "GPU time": duration(sum(one.gpu_seconds for one in made)),
            "size": Number(decimal(sum(one.bytes for one in made))),
        }
        for stage, made in stages.items()
    ]  # fmt: skip


def made_from(inputs: Mapping[str, Ref]) -> Markdown:
    """Names and keys of an artifact's inputs."""
    return Markdown(", ".join(f"{cell(name)} {code(ref.key)}" for name, ref in inputs.items()))
