"""A finished report's numbers for the terminal, from its CSV files: no numpy, no matplotlib."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

Row = dict[str, str]
ALL = "all"
"""Seed in `scores.csv` of the line over all seeds of a model."""


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
    for model in dict.fromkeys(line["model"] for line in lines):
        row = [cells[model, task] for task in tasks]
        name, last = Text(row[0]["row"]), row[-1]
        if row[0]["missing"]:
            name.append("\ndid not run", "dim")
        prefix = "method_difference" if last["method_difference"] else "difference"
        difference = _interval(last, prefix, f"{prefix}_", "+.1f", "\n")
        baseline = f"\n{last['baseline']}" if difference else ""
        table.add_row(name, *map(_score, row), Text.assemble(difference, (baseline, "dim")))
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
    title = "Scores in percent, with 95% intervals"
    table = _table(title, ["task", "model", "metric"], ["score", "against base", "questions"])
    for row in _read(folder / "scores.csv"):
        if row["seed"] != ALL:
            continue
        gain = _interval(row, "difference", "difference_", "+.1f")
        if gain and float(row["difference_low"]) == float(row["difference_high"]) == 0:
            gain = "equal on every question"
        score = _interval(row, "value", "", ".1f")
        names = (row["task"], row["model"], row["metric"])
        table.add_row(*names, score, gain, row["questions"])
    return table
