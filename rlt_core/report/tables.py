"""The tables of an experiment's report. The paper's numbers have columns of their own, and each
says that it is quoted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rlt_core.evaluation.comparisons import Ratio
from rlt_core.evaluation.intervals import Estimate
from rlt_core.report import paper
from rlt_core.report.compared import PARTS, Compared
from rlt_core.report.experiment import Experiment
from rlt_core.report.inputs import Row
from rlt_core.report.ranks import NOISE, REWARD, RankAblation
from rlt_core.report.texts import (
    NOTHING,
    Number,
    cell,
    codes,
    fenced,
    joined,
    number,
    p_value,
    percent,
    points,
    table,
)

UNGRADED = "no graded answer"


# ---------------------------------------------------------------- an experiment
ABOUT_OVERVIEW = (
    "Our numbers are percent correct, with the interval of the method where several seeds were "
    "trained, else of this checkpoint. Numbers marked as quoted are the paper's (arXiv "
    "2506.08388), measured elsewhere: its answers to each question are not known, so no test here "
    "compares ours with them."
)
ABOUT_TABLES = (
    "*This checkpoint*: these seeds, on other questions that could have been asked (clustered by "
    "question). *This method*: other training seeds too (two-way random effects; needs two seeds).",
    "Differences are in percentage points, on the questions that both models answered; seed s is "
    "paired with seed s where both were trained. p: for these checkpoints, a permutation test of "
    "the questions; for the method, a t test. Holm's p-values are over the rows of a task; the "
    "primary contrast is tested on its own. Detectable: the true difference, in points, that a "
    "test on as many questions would find in 80% of studies.",
    "The mean counts every task the same. Its interval for these checkpoints joins the intervals "
    "of the tasks, whose questions are independent: low = mean - sqrt(sum (x_t - low_t)^2) / T, "
    "high likewise (Zou & Donner 2008). For the method and for differences it is a t interval "
    "with the variance sum v_t / T^2 over questions plus the variance of the seeds' means over "
    "the tasks.",
    "A share of a gain is (ours - base) / (data-set student - base), with its 95% set after "
    "Fieller, which is unbounded where the denominator may be zero.",
)


def experiment_section(experiment: Experiment) -> Iterator[str]:
    """First the overview of all tasks, then a table per task and how to read them."""
    contrast = ""
    if experiment.primary:
        names = {one.model: one.name for one in experiment.models}
        baseline = names.get(experiment.primary.baseline or "")
        against = f" against {baseline}" if baseline else ""
        name = cell(f"{experiment.primary.name}{against}")
        contrast = f"**Primary contrast, named before the run: {name}.**\n\n"
    yield f"## The experiment\n\n{contrast}{ABOUT_OVERVIEW}\n\n{table(_overview(experiment))}"
    for task, rows in experiment.tables.items():
        if task:
            yield f"### {cell(task_name(task))}\n\n{table(_task_table(rows))}"
    yield "\n\n".join(ABOUT_TABLES)


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


def _overview(experiment: Experiment) -> list[Row]:
    """Models by tasks: the paper's number where the task is one of the paper's, and ours."""
    shown = []
    for rows in zip(*experiment.tables.values(), strict=True):
        line: Row = {"row": rows[0]["row"]}
        for row in rows:
            task = row["task"]
            if task != paper.MEAN:
                line[f"{task}, the paper"] = quoted(row)
            if task:
                line[f"{task_name(task)}, ours"] = _ours(row, row["method"] or row["value"])
        line["mean of its three benchmarks, the paper"] = quoted(rows[0], "paper_mean_percent")
        line["the paper's row"] = rows[0]["paper_row"] or NOTHING
        line["did not run"] = rows[0]["missing"] or NOTHING
        shown.append(line)
    return shown


def _ours(row: Row, score: Estimate | None) -> str:
    return UNGRADED if score is None and row["evaluation_keys"] else percent(score)


def _task_table(rows: Sequence[Row]) -> list[Row]:
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
        "row": row["row"],
        "the paper": quoted(row),
        "ours, this checkpoint": missing if row["missing"] else _ours(row, row["value"]),
        "ours, this method": percent(row["method"]),
        "by seed": joined(map(percent, by_seed.values() if len(by_seed) > 1 else ())),
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
        "model": codes(row["model_keys"] or ()),
        "evaluation": codes(row["evaluation_keys"] or ()),
    }


def _p(row: Row, p: str) -> Number:
    if row[p] is None:
        return NOTHING
    adjusted = Number("primary") if row["primary"] else p_value(row[f"{p}_holm"])
    return joined([p_value(row[p]), adjusted])


# ---------------------------------------------------------------- overlaps
ABOUT_OVERLAPS = (
    "A model's solved set is what one sample per question solves: sizes are means over samples. "
    "Intervals resample questions. By chance: the same solve rates on unrelated questions, with "
    "the p of an overlap as large. Ceiling: the same share between two samples of one model; needs "
    "two samples per question."
)
MEASURE_NAMES = {
    "ours_in_theirs": "first's also solved by second",
    "theirs_in_ours": "second's also solved by first",
    "jaccard": "Jaccard",
}


def overlap_section(found: Sequence[Row]) -> str:
    """One row per pair, seed and measure."""
    several_tasks = len({row["task"] for row in found}) > 1

    def shown(row: Row) -> Row:
        sizes = (row[f"solved_by_{which}"] for which in ("first", "second", "both"))
        seeds = {str(s) for s in (row["first_seed"], row["second_seed"]) if s is not None}
        chance = f"[{percent(row['chance_low'])}, {percent(row['chance_high'])}]"
        return {
            "first": row["first"], "second": row["second"],
            "task": row["task"] if several_tasks else NOTHING,
            "seeds": ", ".join(sorted(seeds)) or NOTHING,
            "solved by first; second; both; questions": joined(
                [*map(number, sizes), Number(row["questions"])]
            ),
            "share": MEASURE_NAMES[row["measure"]], "%": percent(row["measured"]),
            "by chance": Number(f"{percent(row['chance'])} {chance}"),
            "p": p_value(row["p"]),
            "ceiling: two samples of first; of second": joined(
                map(percent, (row["ceiling_first"], row["ceiling_second"]))
            ),
            "the paper": f"{row['paper']} (quoted)" if row["paper"] else NOTHING,
        }  # fmt: skip

    rows = table([shown(row) for row in found])
    return f"## Do they solve the same problems?\n\n{ABOUT_OVERLAPS}\n\n{rows}"


# ---------------------------------------------------------------- two trace sets
def compared_section(compared: Compared) -> Iterator[str | tuple[str, str]]:
    """Every part of the reward in both sets, and the texts side by side."""
    first, second = compared.names
    named = zip(compared.names, compared.estimators, strict=True)
    estimators = "; ".join(f"{name} {kl}" for name, kl in named)
    yield f"## Traces of {cell(first)} and of {cell(second)}"
    yield cell(
        f"KL estimators: {estimators}. On the {len(compared.questions)} questions for which both "
        f"have a scored trace, means over the samples of each; differences are {second} minus "
        f"{first}. By reward {second} wins {compared.wins}, ties {compared.ties} and loses "
        f"{compared.losses} (sign test p {p_value(compared.sign_p)}); the p of a part is that of a "
        f"permutation test of the questions. Below: the first {len(compared.texts)} questions by "
        "id, not picked."
    )
    rows = [
        {
            "part": line["part"],
            **dict(zip(compared.names, map(number, line["means"]), strict=True)),
            "difference, these seeds": number(line["checkpoint"]),
            "difference, the method": number(line["method"]), "p": p_value(line["p"]),
        }
        for line in compared.lines
    ]  # fmt: skip
    yield table(rows)
    for each in compared.texts:
        yield f"### Question {cell(each['question_id'])}\n\n{fenced(each['question'])}"
        yield f"Solution:\n\n{fenced(each['solution'])}"
        one, other = each["sides"]
        parts = [
            {"part": part, first: number(one[part]), second: number(other[part])}
            for part in PARTS
            if one[part] is not None or other[part] is not None
        ]
        yield table(parts)
        left, right = (
            f"**{cell(name)}**\n\n{fenced(side['text'])}"
            for name, side in zip(compared.names, each["sides"], strict=True)
        )
        yield left, right


# ---------------------------------------------------------------- ranks
ABOUT_RANKS = (
    "A positive value means: the better the rank, the better the student. Intervals come from "
    "resampling seeds and test questions. There is one set of students for each score by which a "
    "question's traces are ranked; random is the noise floor: the differences that chance alone "
    "makes between students. Spread: the best student's score minus the worst's, in points. The "
    "paper's Pearson, by reward, is quoted; so is the share of the R1 pipeline's gain that its "
    f"students of rank 1 reach, {paper.RANK_1_SHARE} (quoted)."
)


def rank_sets_section(sets: Sequence[RankAblation]) -> Iterator[str]:
    """Which score predicts what students learn."""
    rows = []
    for one in sets:
        by_seed = one.statistic("pearson").by_seed.values()
        quoted_pearson = f"{paper.PEARSON} (quoted)" if one.ranked_by == REWARD else NOTHING
        rows.append(
            {
                "ranked by": set_name(one), "Pearson": _statistic(one, "pearson"),
                "Pearson by seed": joined(map(number, by_seed)) if len(by_seed) > 1 else NOTHING,
                "Spearman": _statistic(one, "spearman"), "Kendall": _statistic(one, "kendall"),
                "points a rank": _statistic(one, "slope_points"),
                "spread of the students": percent(one.spread),
                "Pearson, the paper": quoted_pearson,
            }
        )  # fmt: skip
    yield f"### Which score predicts what students learn\n\n{ABOUT_RANKS}\n\n{table(rows)}"


def set_name(ranks: RankAblation) -> str:
    """Name of a set of ranks."""
    return f"{NOISE} (the noise floor)" if ranks.ranked_by == NOISE else ranks.ranked_by


def _statistic(ranks: RankAblation, name: str) -> str:
    found = ranks.statistic(name)
    if found.value is None or not math.isfinite(found.value):
        return "not defined: all students have the same score"
    return number(found)
