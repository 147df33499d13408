"""The tables of an experiment's report. The paper's numbers have columns of their own, and each
says that it is quoted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rlt_core.evaluation.comparisons import Ratio
from rlt_core.report import paper
from rlt_core.report.compared import Compared
from rlt_core.report.experiment import Experiment, Line, Quote, TaskTable, Tested, quote
from rlt_core.report.overlaps import OverlapLine
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
Row = dict[str, Any]


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
        baseline = experiment.row(experiment.primary.baseline)
        against = f" against {baseline.name}" if baseline else ""
        name = cell(f"{experiment.primary.name}{against}")
        contrast = f"**Primary contrast, named before the run: {name}.**\n\n"
    yield f"## The experiment\n\n{contrast}{ABOUT_OVERVIEW}\n\n{table(_overview(experiment))}"
    primary = experiment.primary.model if experiment.primary else None
    for one in experiment.tables:
        if one.task:
            rows = [_task_row(line, line.row.model == primary) for line in one.lines]
            _drop_equal_columns(one, rows)
            yield f"### {cell(task_name(one.task))}\n\n{table(rows)}"
    yield "\n\n".join(ABOUT_TABLES)


def task_name(task: str) -> str:
    """Name of a task's table; the mean is no task."""
    return "mean over tasks" if task == paper.MEAN else task


def quoted(value: Quote | None) -> str:
    """`23.3 (quoted)`, as the paper prints it; says which numbers the paper itself quotes."""
    if value is None:
        return NOTHING
    source = "quoted; the paper quotes it, too" if value.from_others else "quoted"
    return f"{value.percent:.{2 if value.is_mean else 1}f} ({source})"


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
    """Rows by tasks: the paper's number where the task is one of the paper's, and ours."""
    rows = []
    for place, row in enumerate(experiment.rows):
        shown: Row = {"row": row.name}
        for one in experiment.tables:
            line = one.lines[place]
            if one.task != paper.MEAN:
                shown[f"{one.task}, the paper"] = quoted(line.quote)
            if one.task:
                score = line.score and (line.score.method or line.score.checkpoint)
                ours = percent(score) if score else _no_score(line)
                shown[f"{task_name(one.task)}, ours"] = ours
        shown["mean of its three benchmarks, the paper"] = quoted(quote(row, paper.MEAN))
        shown["the paper's row"] = row.paper or NOTHING
        shown["did not run"] = row.missing or NOTHING
        rows.append(shown)
    return rows


def _no_score(line: Line) -> str:
    return UNGRADED if line.evaluations else NOTHING


def _task_row(line: Line, is_primary: bool) -> Row:
    """All that is known of a row on one task."""
    score, against = line.score, line.against
    checkpoint = against.checkpoint if against else None
    method = against.method if against else None
    ours = percent(score.checkpoint) if score else _no_score(line)
    by_seed = score.by_seed.values() if score and len(score.by_seed) > 1 else ()
    samples = "several" if score and score.samples is None else score and score.samples
    return {
        "row": line.row.name,
        "the paper": quoted(line.quote),
        "ours, this checkpoint": f"did not run: {line.row.missing}" if line.row.missing else ours,
        "ours, this method": percent(score and score.method),
        "by seed": joined(map(percent, by_seed)),
        "questions × samples × seeds": Number(  # noqa: RUF001
            f"{score.questions} × {samples} × {len(score.by_seed)}"  # noqa: RUF001
        )
        if score
        else NOTHING,
        "ungraded": score.ungraded if score else NOTHING,
        "grader failed (wrong)": score.grader_failed if score else NOTHING,
        "against": against.baseline.name if against else NOTHING,
        "difference, these checkpoints": points(checkpoint.difference if checkpoint else None),
        "p; Holm": _p(checkpoint, is_primary),
        "difference, the method": points(method.difference if method else None),
        "p; Holm, the method": _p(method, is_primary),
        "detectable": percent(against.detectable if against else None),
        "share of the data-set student's gain": share(line.share),
        "model": codes(line.models),
        "evaluation": codes(line.evaluations),
    }


def _p(tested: Tested | None, is_primary: bool) -> Number:
    if tested is None:
        return NOTHING
    return joined([p_value(tested.p), Number("primary") if is_primary else p_value(tested.holm)])


def _drop_equal_columns(one: TaskTable, rows: list[Row]) -> None:
    """Counts that are all 0, and method intervals that are those of the checkpoints."""
    scores = [line.score for line in one.lines if line.score]
    dropped = {
        "ungraded": not any(score.ungraded for score in scores),
        "grader failed (wrong)": not any(score.grader_failed for score in scores),
        "ours, this method": all(score.method in (None, score.checkpoint) for score in scores),
    }
    for row in rows:
        row.update({name: NOTHING for name, is_dropped in dropped.items() if is_dropped})


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


def overlap_section(lines: Sequence[OverlapLine]) -> Iterator[str]:
    """A row per pair, seed and measure."""
    several_tasks = len({line.task for line in lines}) > 1
    rows = []
    for line in lines:
        sizes = (line.overlap.ours, line.overlap.theirs, line.overlap.both)
        seeds = {str(seed) for seed in (line.ours_seed, line.theirs_seed) if seed is not None}
        for name, found in line.overlap.measures.items():
            chance = f"[{percent(found.chance_low)}, {percent(found.chance_high)}]"
            rows.append(
                {
                    "first": line.ours, "second": line.theirs,
                    "task": line.task if several_tasks else NOTHING,
                    "seeds": ", ".join(sorted(seeds)) or NOTHING,
                    "solved by first; second; both; questions": joined(
                        [*map(number, sizes), Number(line.overlap.questions)]
                    ),
                    "share": MEASURE_NAMES[name], "%": percent(found),
                    "by chance": Number(f"{percent(found.chance)} {chance}"),
                    "p": p_value(found.p),
                    "ceiling: two samples of first; of second": joined(
                        map(percent, (found.ceiling_ours, found.ceiling_theirs))
                    ),
                    "the paper": f"{line.quoted} (quoted)" if line.quoted else NOTHING,
                }
            )  # fmt: skip
    yield f"## Do they solve the same problems?\n\n{ABOUT_OVERLAPS}\n\n{table(rows)}"


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
            "part": line.part, **dict(zip(compared.names, map(number, line.means), strict=True)),
            "difference, these seeds": number(line.checkpoint),
            "difference, the method": number(line.method), "p": p_value(line.p),
        }
        for line in compared.lines
    ]  # fmt: skip
    yield table(rows)
    for each in compared.texts:
        yield f"### Question {cell(each.question_id)}\n\n{fenced(each.question)}"
        yield f"Solution:\n\n{fenced(each.solution)}"
        one, other = each.sides
        parts = [
            {"part": part, first: number(one.parts[part]), second: number(other.parts[part])}
            for part in one.parts
            if one.parts[part] is not None or other.parts[part] is not None
        ]
        yield table(parts)
        left, right = (
            f"**{cell(name)}**\n\n{fenced(side.text)}"
            for name, side in zip(compared.names, each.sides, strict=True)
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
