"""What the tables of an experiment's report show, column by column.

The paper's numbers have columns of their own, and each says that it is quoted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rlt_core.evaluation.comparisons import Ratio
from rlt_core.evaluation.intervals import Estimate
from rlt_core.report import paper
from rlt_core.report.compared import Compared, PartLine
from rlt_core.report.experiment import (
    Against,
    Experiment,
    Line,
    Quote,
    Score,
    TaskTable,
    Tested,
    quote,
)
from rlt_core.report.grid import Cell, Column, Grid, grid, keys, text
from rlt_core.report.overlaps import MEASURE_NAMES, OverlapLine
from rlt_core.report.ranks import NOISE, REWARD, RankAblation, Statistic
from rlt_core.report.texts import NOTHING, number, p_value, percent, points
from rlt_core.stages import TableRow

UNGRADED = "no graded answer"
SHARE = "share of the data-set student's gain"
ALL_TASKS = "mean over tasks"

ABOUT_TABLE = (
    "This checkpoint: the seeds stand as they are, other questions could have been asked "
    "(clustered by question). This method: another run would train with other seeds, too "
    "(two-way random effects; needs two seeds).",
    "Differences are in percentage points, on the questions that both answered; seed s is paired "
    "with seed s where both were trained. p: of these checkpoints, a permutation test of the "
    "questions; of the method, a t test. Holm's p-values are over the rows of a task; the primary "
    "contrast is tested on its own. Detectable: the true difference, in points, that a test on so "
    "many questions would find in 80% of studies.",
    "The mean counts every task the same. Its interval for these checkpoints joins those of the "
    "tasks, whose questions are independent: low = mean - sqrt(sum (x_t - low_t)^2) / T, high "
    "likewise (Zou & Donner 2008); for the method and for differences it is a t interval of the "
    "variance sum v_t / T^2 over questions and that of the seeds' means over the tasks.",
    "A share of a gain is (ours - base) / (data set's student - base), with its 95% set after "
    "Fieller, which has no end where the denominator may be nothing.",
)
ABOUT_OVERLAPS = (
    "A model's solved set is what one sample a question solves: sizes are means over samples. "
    "Intervals resample questions. By chance: the same solve rates on unrelated questions, with p "
    "of an overlap as large. Ceiling: the same share between two samples of one model, which needs "
    "two samples a question."
)
ABOUT_RANKS = (
    "Positive means: the better the rank, the better the student. One set of students for each "
    "score by which a question's traces are ranked; random is the noise floor: what chance alone "
    "makes of the students. Spread: the best student's score minus the worst's, in points. The "
    f"paper's Pearson, by reward, is quoted; so is its share of the R1 pipeline's gain that "
    f"students of rank 1 reach, {paper.RANK_1_SHARE} (quoted)."
)


# ---------------------------------------------------------------- values
def quoted(value: Quote | None) -> str:
    """`23.3 (quoted)`, as the paper prints it; what the paper itself quotes is said to be."""
    if value is None:
        return NOTHING
    source = "quoted; the paper quotes it, too" if value.from_others else "quoted"
    return f"{value.percent:.{2 if value.is_mean else 1}f} ({source})"


def share(ratio: Ratio | None) -> str:
    """`90% [75%, 108%]`, or in words where the set has no end or there was no gain."""
    if ratio is None:
        return NOTHING
    if ratio.denominator.value < 0:
        points = -100 * ratio.denominator.value
        return f"none: the data-set student is {points:.1f} points below its base"
    value = "not defined" if ratio.value is None else f"{100 * ratio.value:.0f}%"
    if ratio.bounded:
        ((low, high),) = ratio.intervals
        return f"{value} [{100 * low:.0f}%, {100 * high:.0f}%]"
    if len(ratio.intervals) == 2:
        (_, low), (high, _) = ratio.intervals
        return (
            f"{value}; all but {100 * low:.0f}% to {100 * high:.0f}% is possible: the data-set "
            "student's gain may be nothing"
        )
    return f"{value}; any share is possible: the data-set student's gain may be nothing"


def widest(score: Score) -> Estimate:
    """The method's interval where there is one, else that of the checkpoint."""
    return score.method or score.checkpoint


def _by_seed(values: Sequence[float]) -> str:
    return "; ".join(percent(value) for value in values) if len(values) > 1 else NOTHING


def task_name(task: str) -> str:
    """The mean is no task."""
    return ALL_TASKS if task == paper.MEAN else task


# ---------------------------------------------------------------- the experiment
def overview(experiment: Experiment) -> Grid:
    """Rows by tasks: the paper's number where the task is one of the paper's, and ours."""
    tables = experiment.tables
    numbered = list(range(len(experiment.rows)))

    def of(row: int) -> TableRow:
        return experiment.rows[row]

    columns = [Column[int]("row", lambda row: text(of(row).name))]
    for table in tables:
        if any(line.quote for line in table.lines) and table.task != paper.MEAN:
            columns.append(Column(f"{table.task}, the paper", _quotes(table)))
        if table.task:
            columns.append(Column(f"{task_name(table.task)}, ours", _ours(table)))
    columns += [
        Column(
            "mean of its three benchmarks, the paper",
            lambda row: Cell(quoted(quote(of(row), paper.MEAN))),
            any(row.paper for row in experiment.rows),
        ),
        Column(
            "the paper's row",
            lambda row: text(of(row).paper or NOTHING),
            any(row.paper for row in experiment.rows),
        ),
        Column(
            "did not run",
            lambda row: text(of(row).missing or ""),
            any(row.missing for row in experiment.rows),
        ),
    ]
    return grid(columns, numbered)


def _quotes(table: TaskTable) -> Callable[[int], Cell]:
    return lambda row: Cell(quoted(table.lines[row].quote))


def _ours(table: TaskTable) -> Callable[[int], Cell]:
    def cell(row: int) -> Cell:
        line = table.lines[row]
        return Cell(percent(widest(line.score)) if line.score else _why(line))

    return cell


def _why(line: Line) -> str:
    return UNGRADED if line.evaluations else NOTHING


def task_grid(table: TaskTable, primary: TableRow | None) -> Grid:
    """All that is known of each row on one task."""
    lines = table.lines
    columns = [
        Column[Line]("row", lambda line: text(line.row.name)),
        Column("the paper", lambda line: Cell(quoted(line.quote)), any(x.quote for x in lines)),
        *_score_columns([line.score for line in lines if line.score]),
        *_difference_columns([line.against for line in lines if line.against], primary),
        Column(SHARE, lambda line: Cell(share(line.share)), any(line.share for line in lines)),
        Column("model", lambda line: keys(line.models)),
        Column("evaluation", lambda line: keys(line.evaluations)),
    ]
    return grid(columns, lines)


def _score_columns(scores: Sequence[Score]) -> list[Column[Line]]:
    return [
        Column("ours, this checkpoint", _checkpoint_cell),
        Column(
            "ours, this method",
            lambda line: Cell(percent(line.score and line.score.method)),
            any(score.method and score.method != score.checkpoint for score in scores),
        ),
        Column(
            "by seed",
            lambda line: Cell(_by_seed(list(line.score.by_seed.values()) if line.score else [])),
            any(len(score.by_seed) > 1 for score in scores),
        ),
        Column("questions × samples × seeds", _size_cell),  # noqa: RUF001
        Column("ungraded", _counted("ungraded"), any(score.ungraded for score in scores)),
        Column(
            "grader failed (wrong)",
            _counted("grader_failed"),
            any(score.grader_failed for score in scores),
        ),
    ]


def _difference_columns(tested: Sequence[Against], primary: TableRow | None) -> list[Column[Line]]:
    def p(line: Line, one: Tested | None) -> Cell:
        if one is None:
            return Cell(NOTHING)
        is_primary = primary is not None and line.row.model == primary.model
        return Cell(f"{p_value(one.p)}; {'primary' if is_primary else p_value(one.holm)}")

    def checkpoint(line: Line) -> Tested | None:
        return line.against.checkpoint if line.against else None

    def method(line: Line) -> Tested | None:
        return line.against.method if line.against else None

    def difference(one: Tested | None) -> Cell:
        return Cell(points(one.difference if one else None))

    has_method = any(against.method for against in tested)
    return [
        Column(
            "against",
            lambda line: text(line.against.baseline.name if line.against else NOTHING),
            bool(tested),
        ),
        Column(
            "difference, these checkpoints",
            lambda line: difference(checkpoint(line)),
            bool(tested),
        ),
        Column("p; Holm", lambda line: p(line, checkpoint(line)), bool(tested)),
        Column("difference, the method", lambda line: difference(method(line)), has_method),
        Column("p; Holm, the method", lambda line: p(line, method(line)), has_method),
        Column("detectable", _detectable_cell, any(against.detectable for against in tested)),
    ]


def _checkpoint_cell(line: Line) -> Cell:
    if line.row.missing:
        return text(f"did not run: {line.row.missing}")
    return Cell(percent(line.score.checkpoint) if line.score else _why(line))


def _size_cell(line: Line) -> Cell:
    if line.score is None:
        return Cell(NOTHING)
    score = line.score
    samples = "several" if score.samples is None else score.samples
    return Cell(f"{score.questions} × {samples} × {len(score.by_seed)}")  # noqa: RUF001


def _counted(name: str) -> Callable[[Line], Cell]:
    return lambda line: Cell(str(getattr(line.score, name)) if line.score else NOTHING)


def _detectable_cell(line: Line) -> Cell:
    found = line.against and line.against.detectable
    return Cell(percent(found) if found else NOTHING)


def primary_text(experiment: Experiment) -> str | None:
    """The contrast that was named before the run."""
    row = experiment.primary
    if row is None:
        return None
    baseline = experiment.row(row.baseline)
    return f"{row.name} against {baseline.name}" if baseline else row.name


# ---------------------------------------------------------------- overlaps
def overlap_grid(lines: Sequence[OverlapLine]) -> Grid:
    """One line a pair, seed and measure."""
    measured = [(line, name) for line in lines for name in line.overlap.measures]

    def ceiling(own: float | None, other: float | None) -> str:
        return f"{percent(own)}; {percent(other)}"

    return grid(
        [
            Column("first", lambda x: text(x[0].ours)),
            Column("second", lambda x: text(x[0].theirs)),
            Column("task", lambda x: text(x[0].task), len({line.task for line in lines}) > 1),
            Column("seeds", lambda x: Cell(_seeds(x[0]))),
            Column(
                "solved by first; second; both; questions",
                lambda x: Cell(
                    f"{x[0].overlap.ours:.4g}; {x[0].overlap.theirs:.4g}; "
                    f"{x[0].overlap.both:.4g}; {x[0].overlap.questions}"
                ),
            ),
            Column("share", lambda x: Cell(MEASURE_NAMES[x[1]])),
            Column("%", lambda x: Cell(percent(x[0].overlap.measures[x[1]]))),
            Column(
                "by chance",
                lambda x: Cell(
                    f"{percent(x[0].overlap.measures[x[1]].chance)} "
                    f"[{percent(x[0].overlap.measures[x[1]].chance_low)}, "
                    f"{percent(x[0].overlap.measures[x[1]].chance_high)}]"
                ),
            ),
            Column("p", lambda x: Cell(p_value(x[0].overlap.measures[x[1]].p))),
            Column(
                "ceiling: two samples of first; of second",
                lambda x: Cell(
                    ceiling(
                        x[0].overlap.measures[x[1]].ceiling_ours,
                        x[0].overlap.measures[x[1]].ceiling_theirs,
                    )
                ),
            ),
            Column(
                "the paper",
                lambda x: Cell(f"{x[0].quoted} (quoted)" if x[0].quoted else NOTHING),
                any(line.quoted for line in lines),
            ),
        ],
        measured,
    )


def _seeds(line: OverlapLine) -> str:
    found = {str(seed) for seed in (line.ours_seed, line.theirs_seed) if seed is not None}
    return ", ".join(sorted(found)) or NOTHING


# ---------------------------------------------------------------- two trace sets
def compared_grid(compared: Compared) -> Grid:
    """Every part of the reward in both sets."""
    first, second = compared.names
    return grid(
        [
            Column[PartLine]("part", lambda line: text(line.part)),
            Column(first, lambda line: Cell(number(line.means[0]))),
            Column(second, lambda line: Cell(number(line.means[1]))),
            Column("difference, these seeds", lambda line: Cell(number(line.checkpoint))),
            Column(
                "difference, the method",
                lambda line: Cell(number(line.method)),
                any(line.method for line in compared.lines),
            ),
            Column("p", lambda line: Cell(p_value(line.p))),
        ],
        compared.lines,
    )


def compared_text(compared: Compared) -> str:
    """What is compared, and who wins."""
    first, second = compared.names
    named = zip(compared.names, compared.estimators, strict=True)
    said = "; ".join(f"{name} {kl}" for name, kl in named)
    return (
        f"KL estimators: {said}. "
        f"On the {len(compared.questions)} questions that both have a scored trace of, means over "
        f"the samples of each; differences are {second} minus {first}. By reward {second} wins "
        f"{compared.wins}, ties {compared.ties} and loses {compared.losses} (sign test p "
        f"{p_value(compared.sign_p)}); the p of a part is of a permutation test of the questions. "
        f"Below: the first {len(compared.texts)} questions by id, not picked."
    )


def side_grid(compared: Compared, number_: int) -> Grid:
    """Parts of the rewards of one question's two traces."""
    sides = compared.texts[number_].sides
    parts = [part for part in sides[0].parts if any(side.parts[part] is not None for side in sides)]
    first, second = compared.names
    return grid(
        [
            Column[str]("part", text),
            Column(first, lambda part: Cell(number(sides[0].parts[part]))),
            Column(second, lambda part: Cell(number(sides[1].parts[part]))),
        ],
        parts,
    )


# ---------------------------------------------------------------- ranks
def rank_title(ranks: RankAblation) -> str:
    """Of the section."""
    if ranks.ranked_by == REWARD:
        return "Reward rank and student score"
    return f"Rank by {set_name(ranks.ranked_by)} and student score"


def rank_sets_grid(sets: Sequence[RankAblation]) -> Grid:
    """Which score predicts what students learn."""

    def of(name: str) -> Column[RankAblation]:
        header = {"slope_points": "points a rank"}.get(name, name.capitalize())
        return Column(header, lambda one: Cell(_statistic(one.statistic(name))))

    several = any(len(one.statistic("pearson").by_seed) > 1 for one in sets)
    return grid(
        [
            Column[RankAblation]("ranked by", lambda one: text(set_name(one.ranked_by))),
            of("pearson"),
            Column(
                "Pearson by seed",
                lambda one: Cell(
                    "; ".join(number(v) for v in one.statistic("pearson").by_seed.values())
                    or NOTHING
                ),
                several,
            ),
            of("spearman"),
            of("kendall"),
            of("slope_points"),
            Column("spread of the students", lambda one: Cell(percent(one.spread))),
            Column(
                "Pearson, the paper",
                lambda one: Cell(
                    f"{paper.PEARSON} (quoted)" if one.ranked_by == REWARD else NOTHING
                ),
            ),
        ],
        sets,
    )


def set_name(ranked_by: str) -> str:
    """As the report calls a set."""
    return f"{ranked_by} (the noise floor)" if ranked_by == NOISE else ranked_by


def _statistic(statistic: Statistic) -> str:
    if statistic.value is None or not math.isfinite(statistic.value):
        return "not defined"
    return number(statistic)
