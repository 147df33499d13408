"""The figures of a report: what each shows, and the SQL that reads the same from the store."""

from collections.abc import Iterator, Sequence

import numpy as np

from rlt_core.evaluation.intervals import Estimate
from rlt_core.evaluation.scores import UNGRADED
from rlt_core.report import paper
from rlt_core.report.answer import PairedContrast
from rlt_core.report.gather import ReportData
from rlt_core.report.inputs import Part, Row
from rlt_core.report.ranks import NOISE
from rlt_core.report.scores import BASE
from rlt_core.report.svg import GREY, Figure
from rlt_core.sql.macros import literal

SMOOTH_STEPS = 5
MOST_POINTS = 160
"""Points of a line; a longer one shows means of several steps."""
NAMES = {
    "reward": "reward", "r_ss": "r_SS, of the solution", "r_kl": "r_KL, of the explanation",
    "correct": "share correct", "reference_kl": "KL to the reference model",
    "completion_tokens": "tokens of a completion", "loss": "loss",
}  # fmt: skip
"""Column of a training step -> the title of its chart."""
TRAINED = {
    "reward": "The reward and its parts over the steps of RL",
    "loss": "Loss of supervised training",
}
"""Figures of training, by the quantity of their curves."""


def plot_figures(data: ReportData, found: Sequence[PairedContrast]) -> dict[str, Figure]:
    """Return name -> figure, for all parts of the report that have data."""
    every = (
        _answer(data, found), _scores(data), *(_training(data, name) for name in TRAINED),
        _ranks(data),
    )  # fmt: skip
    return {one.name: one for one in every if one and one.rows}


def _query(columns: str, table: str, parts: Sequence[Part], also: str = "order by all") -> str:
    """A query of some artifacts' rows."""
    keys = ", ".join(dict.fromkeys(literal(part.key) for part in parts))
    return f"select {columns}\nfrom {table}\nwhere run in ({keys})\n{also}"


def _scored(parts: Sequence[Part], tasks: Sequence[str]) -> str:
    """A query of each model's score, from its answers; the difference of two is a contrast."""
    chosen, ungraded = (", ".join(map(literal, names)) for names in (tasks, sorted(UNGRADED)))
    answers = _query(
        "task, label, seed, question_id, avg((outcome = 'correct')::int) as correct",
        "eval_samples", parts,
        f"  and task in ({chosen}) and outcome not in ({ungraded})\ngroup by all",
    )  # fmt: skip
    columns = "task, label, seed, avg(correct) as score, count(*) as questions"
    return (
        f"with answers as (\n{answers})\nselect {columns}\nfrom answers\ngroup by all order by all"
    )


def _row(chart: str, series: str, value: Estimate, color: int = 0, x: float | None = None) -> Row:
    ends = {"value": value.value, "low": value.low, "high": value.high}
    return {"chart": chart, "series": series, "x": x, "color": color} | ends


# ---------------------------------------------------------------- scores
def _answer(data: ReportData, found: Sequence[PairedContrast]) -> Figure | None:
    """The contrasts: those of scores, or of rewards where there are none."""
    scores = [one for one in found if one.task is not None]
    chosen = scores or list(found)
    if not chosen:
        return None
    task = chosen[0].task
    title = f"Difference on {task}" if scores else "Difference in reward"
    rows = [
        _row(title, one.name, one.difference, GREY if place else 1)
        for place, one in enumerate(chosen)
    ]
    caption = "Differences with 95% intervals, the primary one first."
    if not scores:
        parts = [one for one in data.nodes if one.stage == "trace-scoring"]
        columns = "label, seed, avg(reward) as reward, count(*) as traces"
        also = "  and status = 'scored'\ngroup by all order by all"
        return Figure("answer", caption, rows, _query(columns, "scores", parts, also), "reward")
    parts = [part for one in chosen for part in one.parts]
    models = [part.variant for part in parts]
    tasks = [one for one in data.evaluations.tasks(models) if task in (one, paper.MEAN)]
    label = "percentage points; right of 0: the first is better"
    return Figure("answer", caption, rows, _scored(parts, tasks), label, unit="points")


def _scores(data: ReportData) -> Figure | None:
    if not data.experiment:
        return None
    shown = [
        row
        for task, rows in data.experiment.tables.items()
        for row in rows
        if task not in data.experiment.alike and row["value"]
    ]
    rows = [
        _row(
            f"Score on {row['task']}", row["row"], row["method"] or row["value"],
            GREY if row["model"] == BASE else 0,
        )
        for row in shown
    ]  # fmt: skip
    models = dict.fromkeys(row["model"] for row in shown)
    parts = [part for model in models for part in data.evaluations.parts[model]]
    sql = _scored(parts, list(dict.fromkeys(row["task"] for row in shown)))
    caption = "Scores of the models over all seeds, with 95% intervals."
    return Figure("scores", caption, rows, sql, "% correct", unit="percent", bounds=(0.0, 1.0))


# ---------------------------------------------------------------- training
def _training(data: ReportData, quantity: str) -> Figure:
    """Reward and its parts over the steps of RL; the loss of supervised training."""
    chosen = [curve for curve in data.curves if curve["quantity"] == quantity]
    names = [name for name in NAMES if any(name in one["columns"] for one in chosen)]
    labels = dict.fromkeys(curve["label"] for curve in chosen)
    rows = [
        row
        for label in labels
        for name in names
        if (quantity == "reward") is (name != "loss")
        for color, curve in enumerate(one for one in chosen if one["label"] == label)
        if name in curve["columns"]
        for row in _steps(f"{label}: {NAMES[name]}", curve, curve["columns"][name], color)
    ]
    made = {curve["name"] for curve in chosen}
    parts = [part for part in data.nodes if part.name in made]
    sql = _query(f"label, seed, step, {', '.join(names)}", "train_steps", parts)
    caption = f"{TRAINED[quantity]}: means of {SMOOTH_STEPS} steps."
    return Figure(quantity, caption, rows, sql, x_label="step")


def _steps(chart: str, curve: Row, column: Sequence[float | None], color: int) -> Iterator[Row]:
    """Yield at most `MOST_POINTS` points of a seed's line: means of some steps."""
    seed = "" if curve["seed"] is None else f"seed {curve['seed']}"
    values = [np.nan if value is None else value for value in column]
    window = SMOOTH_STEPS if len(values) > SMOOTH_STEPS else 1
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    steps, size = curve["steps"][window - 1 :], -(-len(smooth) // MOST_POINTS)
    for at in range(0, len(smooth), size):
        point = {"x": steps[at : at + size][-1], "value": float(smooth[at : at + size].mean())}
        yield {"chart": chart, "series": seed, "low": None, "high": None, "color": color} | point


# ---------------------------------------------------------------- ranks
def _ranks(data: ReportData) -> Figure | None:
    """A chart per set; behind the students of a set those of random ranks, or else the base."""
    sets = [one for one in data.rank_sets if one["lines"]]
    if not sets:
        return None
    noise = [one for one in sets[1:] if one["ranked_by"] == NOISE]
    beside = "random ranks" if noise else "the base model"
    grey = [(line["rank"], line["value"]) for line in noise[0]["lines"]] if noise else []
    rows = []
    for one in sets:
        title = f"% correct, ranked by {one['ranked_by']}"
        if one not in noise:
            behind = grey or _base(data, one)
            rows += [_row(title, beside, value, GREY, rank) for rank, value in behind]
        rows += [_row(title, "students", line["value"], 0, line["rank"]) for line in one["lines"]]
    parts = [one for one in data.nodes if one.stage == "rank-statistics"]
    columns = "ranked_by, rank, seed, value, low, high, mean_reward, traces"
    caption = (
        f"What students learn from the traces of each rank, on {sets[0]['task']}, with 95% "
        f"intervals. Grey: {beside}."
    )
    sql = _query(columns, "rank_scores", parts)
    label = "rank, 1 is best"
    return Figure("ranks", caption, rows, sql, x_label=label, unit="percent", bounds=(0.0, 1.0))


def _base(data: ReportData, ranks: Row) -> list[tuple[int, Estimate]]:
    """The base model's score, as far as the ranks go."""
    rows = data.experiment.tables.get(ranks["task"], []) if data.experiment else []
    scores = [row["value"] for row in rows if row["model"] == BASE and row["value"]]
    return [(ranks["lines"][end]["rank"], score) for score in scores for end in (0, -1)]
