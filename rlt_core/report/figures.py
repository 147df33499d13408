"""The figures of a report, as PNG."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Plot
from matplotlib.ticker import MaxNLocator

from rlt_core.evaluation.intervals import Estimate
from rlt_core.report.gather import ReportData
from rlt_core.report.inputs import Row
from rlt_core.report.ranks import NOISE, RankAblation
from rlt_core.report.scores import BASE
from rlt_core.report.training import Curve

COLORS = ("#2a5c8a", "#c4622d", "#4c8c4a", "#8a4f9e", "#8c6d31", "#7f7f7f")
GREY = "#8c8c8c"
DASHES = ("-", "--", ":")
SMOOTH_STEPS = 5
PANELS_A_ROW = 2
DPI = 130


@dataclass(frozen=True)
class Figure:
    """A plot with its caption."""

    file: str
    caption: str
    png: bytes


def plot_figures(data: ReportData) -> dict[str, Figure]:
    """Return file name -> figure, for all parts of the report that have data."""
    return {file: Figure(file, caption, _png(plot)) for file, caption, plot in _plots(data)}


def _png(plot: Plot) -> bytes:
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _plots(data: ReportData) -> Iterator[tuple[str, str, Plot]]:
    if data.totals:
        yield (
            "scores.png",
            "Scores of the models over all seeds, with 95% intervals.",
            _scores(data.totals),
        )
    captions = {
        "reward": f"Mean reward of each GRPO step (thin) and a mean of {SMOOTH_STEPS} (thick).",
        "loss": f"Loss of supervised training, step by step (thin) and a mean of {SMOOTH_STEPS} "
        "(thick).",
    }
    for quantity, caption in captions.items():
        chosen = [curve for curve in data.curves if curve.quantity == quantity]
        if chosen:
            yield f"{quantity}.png", caption, _curves(chosen, quantity)
    if data.ranks and data.ranks.lines:
        base = next(
            (
                row["value"]
                for row in data.totals
                if (row["model"], row["task"]) == (BASE, data.ranks.task)
            ),
            None,
        )
        caption = "What students learn from traces of each rank, with 95% intervals."
        yield "ranks.png", caption, _ranks(data.ranks, base)
    sets = [one for one in data.rank_sets if one.lines]
    if len(sets) > 1:
        caption = "Student score over rank, a line for each score by which traces were ranked."
        yield "rank_sets.png", caption, _rank_sets(sets)


def _axes(panels: int, height: float = 3.2) -> tuple[Plot, list[Axes]]:
    columns = min(panels, PANELS_A_ROW)
    rows = -(-panels // columns)
    figure = Plot(figsize=(5.2 * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in grid[panels:]:
        axes.set_axis_off()
    for axes in grid[:panels]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    return figure, grid[:panels]


def _scores(rows: Sequence[Row]) -> Plot:
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, panels = _axes(len(tasks), height=1.2 + 0.35 * len(models))
    for task, axes in zip(tasks, panels, strict=True):
        for row in rows:
            if row["task"] != task or not row["metric"].startswith("avg@"):
                continue
            y, score = models.index(row["model"]), row["value"]
            color = GREY if row["model"] == BASE else COLORS[0]
            axes.plot([100 * score.low, 100 * score.high], [y, y], color=color, linewidth=2)
            axes.plot(100 * score.value, y, "o", color=color)
        axes.set_yticks(range(len(models)), models)
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.set_xlim(-2, 102)
        axes.set_xlabel("% correct")
        axes.set_title(task, fontsize=10)
    return figure


def _curves(curves: Sequence[Curve], quantity: str) -> Plot:
    labels = list(dict.fromkeys(curve.label for curve in curves))
    figure, panels = _axes(len(labels))
    for label, axes in zip(labels, panels, strict=True):
        chosen = [curve for curve in curves if curve.label == label]
        for curve, color in zip(chosen, itertools.cycle(COLORS)):
            name = None if curve.seed is None else f"seed {curve.seed}"
            smooth, steps = _smooth(curve.values), curve.steps[: len(curve.values)]
            axes.plot(steps, curve.values, color=color, linewidth=0.8, alpha=0.4)
            axes.plot(steps[len(steps) - len(smooth) :], smooth, color=color, label=name)
        axes.set_title(label, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("step")
        axes.set_ylabel(quantity)
        if len(chosen) > 1:
            axes.legend(frameon=False, fontsize=8)
    return figure


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean over the last `SMOOTH_STEPS` steps, from where there are so many."""
    window = min(SMOOTH_STEPS, len(values))
    return np.convolve(values, np.ones(window) / window, mode="valid").tolist()


def _ranks(ablation: RankAblation, base: Estimate | None) -> Plot:
    figure, (axes,) = _axes(1, height=3.6)
    lows, highs = (
        100 * np.array([getattr(line, end) for line in ablation.lines]) for end in ("low", "high")
    )
    ranks = np.array([line.rank for line in ablation.lines], dtype=np.float64)
    axes.vlines(ranks, lows, highs, color=COLORS[0], linewidth=2)
    fitted = {"color": COLORS[1], "linewidth": 1.2, "linestyle": "--"}
    _points_and_line(axes, ablation, {"color": COLORS[0]}, fitted)
    if base:
        axes.axhline(100 * base.value, color=GREY, linewidth=1)
        axes.annotate(
            "base", (1.01, 100 * base.value), xycoords=axes.get_yaxis_transform(), color=GREY,
            fontsize=8, va="center",
        )  # fmt: skip
    pearson = ablation.statistic("pearson")
    if pearson.value is not None:
        axes.set_title(
            f"Pearson {pearson.value:.2f} [{pearson.low:.2f}, {pearson.high:.2f}]", fontsize=10
        )
    axes.set_xlabel(f"{ablation.ranked_by} rank of the traces a student was trained on (1 is best)")
    axes.set_ylabel(f"% correct, {ablation.task}")
    axes.set_xticks(ranks)
    return figure


def _points_and_line(axes: Axes, ablation: RankAblation, points: Row, line: Row) -> None:
    """Plot the students' scores over the rank, and the fitted line where there are several."""
    ranks = np.array([one.rank for one in ablation.lines], dtype=np.float64)
    values = 100 * np.array([one.value for one in ablation.lines])
    axes.plot(ranks, values, "o", **points)
    if len(ranks) > 1:
        slope, start = np.polyfit(ranks, values, 1)
        axes.plot(ranks, start + slope * ranks, **line)


def _rank_sets(sets: Sequence[RankAblation]) -> Plot:
    figure, (axes,) = _axes(1, height=4.2)
    figure.set_figwidth(7.2)
    for number, one in enumerate(sets):
        noise = one.ranked_by == NOISE
        color = GREY if noise else COLORS[number % (len(COLORS) - 1)]
        dashes = DASHES[number // (len(COLORS) - 1) % len(DASHES)]
        label = "random (the noise floor)" if noise else one.ranked_by
        points = {"color": color, "markersize": 3, "alpha": 0.6}
        fitted = {"color": color, "linestyle": dashes, "label": label}
        _points_and_line(axes, one, points, fitted)
    axes.set_xlabel("rank of the traces a student was trained on (1 is best)")
    axes.set_ylabel(f"% correct, {sets[0].task}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(
        frameon=False, fontsize=8, title="ranked by", title_fontsize=8, loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
    )  # fmt: skip
    return figure
