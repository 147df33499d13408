"""The figures of a report: what each shows, and the SQL that reads the same from the store."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlt_core.evaluation.intervals import Estimate
from rlt_core.evaluation.scores import UNGRADED
from rlt_core.report import paper
from rlt_core.report.answer import PairedContrast
from rlt_core.report.gather import ReportData
from rlt_core.report.inputs import Part, Row
from rlt_core.report.ranks import NOISE, RankAblation
from rlt_core.report.scores import BASE
from rlt_core.report.svg import GREY, DrawnPoint, Panel, Series, together
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


@dataclass(frozen=True)
class Figure:
    """A figure of one or several charts."""

    name: str
    caption: str
    panels: Sequence[Panel]
    sql: str
    """Reads what the figure shows from the store."""

    @property
    def file(self) -> str:
        return f"{self.name}.svg"

    @property
    def svg(self) -> str:
        """All charts in one file."""
        return together(self.panels)

    @property
    def rows(self) -> list[Row]:
        """The points, as they are drawn."""
        return [
            {"chart": panel.title, "series": series.name} | point._asdict()
            for panel in self.panels
            for series in panel.series
            for point in series.points
        ]


def plot_figures(data: ReportData, found: Sequence[PairedContrast]) -> dict[str, Figure]:
    """Return name -> figure, for all parts of the report that have data."""
    every = (
        _answer(data, found), _scores(data), _rewards(data),
        *(_training(data, name) for name in TRAINED), _ranks(data),
    )  # fmt: skip
    return {one.name: one for one in every if one and one.panels}


def _query(columns: str, table: str, parts: Sequence[Part], also: str = "order by all") -> str:
    """A query of some artifacts' rows."""
    keys = ", ".join(dict.fromkeys(literal(part.manifest.ref.key) for part in parts))
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


def _point(estimate: Estimate, x: float | None = None) -> DrawnPoint:
    return DrawnPoint(x, estimate.value, estimate.low, estimate.high)


# ---------------------------------------------------------------- scores
def _answer(data: ReportData, found: Sequence[PairedContrast]) -> Figure | None:
    """The contrasts: those of scores, or of rewards where there are none."""
    scores = [one for one in found if one.task is not None]
    chosen = scores or list(found)
    if not chosen:
        return None
    series = [
        Series(one.name, [_point(one.difference)], GREY if number else 1)
        for number, one in enumerate(chosen)
    ]
    caption = "Differences with 95% intervals, the primary one first."
    if not scores:
        panel = Panel("Difference in reward", series, "reward")
        return Figure("answer", caption, [panel], _rewarded(data))
    task = chosen[0].task
    parts = [part for one in chosen for part in one.parts]
    models = [part.variant for part in parts]
    tasks = [one for one in data.evaluations.tasks(models) if task in (one, paper.MEAN)]
    label = "percentage points; right of 0: the first is better"
    panel = Panel(f"Difference on {task}", series, label, unit="points")
    return Figure("answer", caption, [panel], _scored(parts, tasks))


def _rewarded(data: ReportData) -> str:
    parts = [one for one in data.nodes if one.stage == "trace-scoring"]
    columns = "label, seed, avg(reward) as reward, count(*) as traces"
    return _query(columns, "scores", parts, "  and status = 'scored'\ngroup by all order by all")


def _scores(data: ReportData) -> Figure | None:
    if not data.experiment:
        return None
    tables = {
        task: scored
        for task, rows in data.experiment.tables.items()
        if task not in data.experiment.alike and (scored := [row for row in rows if row["value"]])
    }
    panels = [
        Panel(
            f"Score on {task}",
            [
                Series(
                    row["row"], [_point(row["method"] or row["value"])],
                    GREY if row["model"] == BASE else 0,
                )
                for row in rows
            ],
            "% correct", unit="percent", bounds=(0.0, 1.0),
        )
        for task, rows in tables.items()
    ]  # fmt: skip
    models = dict.fromkeys(row["model"] for rows in tables.values() for row in rows)
    parts = [part for model in models for part in data.evaluations.parts[model]]
    caption = "Scores of the models over all seeds, with 95% intervals."
    return Figure("scores", caption, panels, _scored(parts, [*tables]))


# ---------------------------------------------------------------- training
def _rewards(data: ReportData) -> Figure:
    series = [Series(line["name"], [_point(line["reward"])]) for line in data.rewards]
    panels = [Panel("Mean reward of scored traces", series, "reward")] if len(series) > 1 else []
    caption = "Mean rewards of scored traces, with 95% intervals."
    return Figure("rewards", caption, panels, _rewarded(data))


def _training(data: ReportData, quantity: str) -> Figure:
    """Reward and its parts over the steps of RL; the loss of supervised training."""
    chosen = [curve for curve in data.curves if curve["quantity"] == quantity]
    names = [name for name in NAMES if any(name in one["columns"] for one in chosen)]
    labels = dict.fromkeys(curve["label"] for curve in chosen)
    runs = {label: [curve for curve in chosen if curve["label"] == label] for label in labels}
    panels = [
        Panel(f"{label}: {NAMES[name]}", list(_lines(each, name)), name, "step")
        for label, each in runs.items()
        for name in names
        if name in each[0]["columns"] and (quantity == "reward") is (name != "loss")
    ]
    made = {curve["name"] for curve in chosen}
    parts = [part for part in data.nodes if part.name in made]
    sql = _query(f"label, seed, step, {', '.join(names)}", "train_steps", parts)
    caption = f"{TRAINED[quantity]}: means of {SMOOTH_STEPS} steps."
    return Figure(quantity, caption, panels, sql)


def _lines(runs: Sequence[Row], name: str) -> Iterator[Series]:
    """A line of means of some steps for each seed."""
    for color, curve in enumerate(runs):
        seed = "" if curve["seed"] is None else f"seed {curve['seed']}"
        values = [np.nan if value is None else value for value in curve["columns"].get(name, [])]
        window = SMOOTH_STEPS if len(values) > SMOOTH_STEPS else 1
        smooth = np.convolve(values or [np.nan], np.ones(window) / window, mode="valid").tolist()
        yield Series(seed, _points(curve["steps"][window - 1 :], smooth), color)


def _points(steps: Sequence[int], values: Sequence[float]) -> list[DrawnPoint]:
    """At most `MOST_POINTS`: means of as many steps as that takes."""
    size = -(-len(values) // MOST_POINTS)
    return [
        DrawnPoint(steps[min(at + size, len(values)) - 1], float(np.mean(values[at : at + size])))
        for at in range(0, len(values), max(size, 1))
    ]


# ---------------------------------------------------------------- ranks
def _ranks(data: ReportData) -> Figure | None:
    sets = [one for one in data.rank_sets if one.lines]
    if not sets:
        return None
    noise = [one for one in sets[1:] if one.ranked_by == NOISE]
    beside = "the random ranks" if noise else "the base model"
    grey = _by_rank(noise[0]) if noise else _base(data, sets[0])
    panels = [
        Panel(
            f"% correct, ranked by {one.ranked_by}",
            [
                *([Series(beside, grey, GREY)] if grey and one not in noise else []),
                Series("students", _by_rank(one)),
            ],
            "% correct", "rank, 1 is best", unit="percent", bounds=(0.0, 1.0),
        )
        for one in sets
    ]  # fmt: skip
    parts = [one for one in data.nodes if one.stage == "rank-statistics"]
    columns = "ranked_by, rank, seed, value, low, high, mean_reward, traces"
    caption = (
        f"What students learn from the traces of each rank, on {sets[0].task}, with 95% intervals. "
        f"Grey: {beside}."
    )
    return Figure("ranks", caption, panels, _query(columns, "rank_scores", parts))


def _by_rank(ranks: RankAblation) -> list[DrawnPoint]:
    return [_point(line["value"], line["rank"]) for line in ranks.lines]


def _base(data: ReportData, ranks: RankAblation) -> list[DrawnPoint]:
    """The base model's score, as far as the ranks go."""
    rows = data.experiment.tables.get(ranks.task, []) if data.experiment else []
    scores = [row["value"].value for row in rows if row["model"] == BASE and row["value"]]
    ends = (ranks.lines[0]["rank"], ranks.lines[-1]["rank"])
    return [DrawnPoint(rank, value) for value in scores for rank in ends]
