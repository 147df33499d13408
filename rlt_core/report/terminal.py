"""Numbers for the terminal: of a finished report, from its CSV files, and of one node. No numpy, no
matplotlib."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlt_core.progress import Metrics
from rlt_core.store import Manifest, Store

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

Row = dict[str, str]
ALL = "all"
"""Seed in `scores.csv` of the line over all seeds of a model."""


def opening(folder: Path) -> tuple[str, list[str], list[str]]:
    """The title of a report, its notes, and its alarms."""
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    text = [re.sub(r"\\([\\`*_{}\[\]<>#|!~&$])", r"\1", line) for line in lines]
    sections = [number for number, line in enumerate(lines) if line.startswith("## ")]
    first, second = (*sections, len(lines), len(lines))[:2]
    notes = [line.removeprefix("> ") for line in text[:first] if line.startswith("> ")]
    has_alarms = lines[first:second][:1] == ["## Alarms"]
    alarms = [line.removeprefix("- ") for line in text[first:second] if line.startswith("- ")]
    return text[0].removeprefix("# "), notes, alarms if has_alarms else []


def summary_table(folder: Path) -> Table:
    """The overview of an experiment's rows, or of the traces that it compares; for a report with
    neither, the scores of all models."""
    if (folder / "table.csv").exists():
        return overview_table(_read(folder / "table.csv"))
    if (folder / "compared.csv").exists():
        return compared_table(_read(folder / "compared.csv"))
    return scores_table(folder)


def _read(file: Path) -> list[Row]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def _table(title: str, left: list[str], right: list[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _interval(row: Row, value: str, prefix: str, form: str, between: str = " ") -> str:
    """`84.0 [79.1, 88.2]` in percent; empty without a value."""
    if not row[value]:
        return ""
    names = (value, f"{prefix}low", f"{prefix}high")
    number, low, high = (f"{100 * float(row[name]):{form}}" for name in names)
    return f"{number}{between}[{low}, {high}]"


def overview_table(lines: list[Row]) -> Table:
    """Rows by tasks in percent: ours with its interval, below it the paper's; and the difference
    from the baseline in the last task or in the mean of all."""
    from rich.text import Text

    tasks = list(dict.fromkeys(line["task"] for line in lines))
    cells = {(line["model"], line["task"]): line for line in lines}
    title = "Percent correct, with 95% intervals; the paper's numbers are quoted"
    against = f"against, {tasks[-1]}" if tasks[-1] else "against"
    table = _table(title, ["row"], [*(task or "score" for task in tasks), against])
    for column in (table.columns[0], table.columns[-1]):
        column.no_wrap, column.overflow = False, "fold"
    absent = 0
    for model in dict.fromkeys(line["model"] for line in lines):
        row = [cells[model, task] for task in tasks]
        if row[0]["missing"] and not any(line["paper_percent"] for line in row):
            absent += 1
            continue
        name, last = Text(row[0]["row"]), row[-1]
        if row[0]["missing"]:
            name.append("\ndid not run", "dim")
        prefix = "method_difference" if last["method_difference"] else "difference"
        difference = _interval(last, prefix, f"{prefix}_", "+.1f", "\n")
        baseline = f"\n{last['baseline']}" if difference else ""
        table.add_row(name, *map(_score, row), Text.assemble(difference, (baseline, "dim")))
    if absent:
        table.add_row(Text(f"{absent} more rows did not run", "dim"))
    return table


def _score(line: Row) -> Text:
    """The method's interval where there is one; the paper's number below."""
    ours = _interval(line, "value", "method_" if line["method_low"] else "", ".1f", "\n")
    from rich.text import Text

    paper = f"paper {line['paper_percent']}" if line["paper_percent"] else ""
    return Text.assemble(ours, "\n" if ours and paper else "", (paper, "dim"))


def compared_table(lines: list[Row]) -> Table:
    """Mean reward of two sets of traces on the same questions, and which has the better one."""
    title = f"Reward of the traces of {len(lines)} questions"
    table = _table(title, ["traces"], ["mean reward", "better on"])
    names = [name[7:-1] for name in lines[0] if name.startswith("reward[")]
    differences = [float(line["reward_difference"]) for line in lines]
    better = (sum(each < 0 for each in differences), sum(each > 0 for each in differences))
    for name, count in zip(names, better, strict=True):
        mean = sum(float(line[f"reward[{name}]"]) for line in lines) / len(lines)
        table.add_row(name, f"{mean:.3f}", str(count))
    return table


def scores_table(folder: Path) -> Table:
    """The scores of all models, over all seeds, in percent."""
    rows = [row for row in _read(folder / "scores.csv") if row["seed"] == ALL]
    metrics = {f"{row['metric']} of {row['questions']} questions" for row in rows}
    same = f", {next(iter(metrics))}" if len(metrics) == 1 else ""
    title = f"Percent correct{same}, with 95% intervals"
    table = _table(title, ["task", "model"], ["score", "against base"])
    for row in rows:
        gain = _interval(row, "difference", "difference_", "+.1f")
        if gain and float(row["difference_low"]) == float(row["difference_high"]) == 0:
            gain = "equal everywhere"
        task = row["task"] if same else f"{row['task']} {row['metric']}"
        table.add_row(task, row["model"], _interval(row, "value", "", ".1f"), gain)
    return table


# ---------------------------------------------------------------- of one node
MANY_UNCLOSED = 0.5
FACTS = {
    "train": "{:.0f} to train", "mean_reward": "reward {:.3g}", "correct": "{:.0%} correct",
    "scored": "{:.0f} scored", "traces": "{:.0f} traces", "mean_tokens": "{:.0f} tokens each",
    "slope_points": "{:+.2g} points a rank", "parameters": "{:.3g} parameters",
    "nodes": "of {:.0f} nodes", "tokens_per_s": "{:.0f} tokens/s",
}  # fmt: skip
"""The metrics that a line has room for, the most important ones first."""


def duration(seconds: float) -> str:
    """`1.7 s`, `85 s`, `12 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def alarms_of(metrics: Metrics) -> str:
    """The alarms in the metrics of running or finished work: `alarm: copied, over length`."""
    found = [
        name.removeprefix("alarm_").replace("_", " ")
        for name, value in metrics.items()
        if name.startswith("alarm_") and value
    ]
    if (unclosed := metrics.get("unclosed", 0)) > MANY_UNCLOSED:
        found.append(f"{unclosed:.0%} have no end")
    return f"alarm: {', '.join(found)}" if found else ""


def facts(metrics: Metrics, scores: Sequence[str] = ()) -> list[str]:
    """What matters most about running or finished work: scores, the reward or the loss from first
    to last, then `FACTS`."""
    found = list(scores)
    for name in ("reward", "loss"):
        if name in metrics:
            found.append(f"{name} {metrics[name]:.3g}")
        elif f"{name}_last" in metrics:
            found.append(f"{name} {metrics[f'{name}_first']:.3g} → {metrics[f'{name}_last']:.3g}")
    found += [form.format(metrics[name]) for name, form in FACTS.items() if name in metrics]
    return found or [f"{name} {value:.4g}" for name, value in metrics.items()]


def scores_of(manifest: Manifest, store: Store | None) -> list[str]:
    """Return an evaluation's scores in percent with their intervals: `test 33.8 [30.4, 37.2]`."""
    if manifest.stage != "evaluation" or store is None:
        return []
    from rlt_core.rows import read_rows

    names = ["task", "metric", "value", "low", "high"]
    rows = read_rows(store.local(manifest.only(".parquet")), "eval_scores", names)
    return [
        f"{row['task']} {100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        for row in rows
        if row["metric"].startswith("avg@")
    ]
