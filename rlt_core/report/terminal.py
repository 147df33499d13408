"""A finished report's numbers for the terminal, from its CSV files: no numpy, no matplotlib."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from rlt_core.report.scores import ALL

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, str]


def summary_table(folder: Path) -> Table:
    """The overview of an experiment's rows, or of the traces that it compares; of a report with
    neither the scores of all models."""
    if (folder / "table.csv").exists():
        return overview_table(folder)
    if (folder / "compared.csv").exists():
        return compared_table(folder)
    return scores_table(folder)


def _read(file: Path) -> list[Row]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")


# ---------------------------------------------------------------- an experiment
def overview_table(folder: Path) -> Table:
    """Rows by tasks in percent: ours with its interval, below it the paper's; and the difference
    from the baseline in the last task or in the mean of all."""
    from rich.markup import escape

    lines = _read(folder / "table.csv")
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    models = list(dict.fromkeys(line["model"] for line in lines))
    cells = {(line["model"], line["task"]): line for line in lines}
    table = _table("Percent correct, with 95% intervals; the paper's numbers are quoted")
    table.add_column("row")
    for task in tasks:
        table.add_column(task or "score", justify="right", no_wrap=True)
    against = f"against, {tasks[-1]}" if tasks[-1] else "against"
    table.add_column(against, justify="right", overflow="fold")
    for model in models:
        row = [cells[model, task] for task in tasks]
        name = escape(row[0]["row"])
        if row[0]["missing"]:
            name += "\n[dim]did not run[/]"
        table.add_row(name, *map(_score, row), _difference(row[-1]))
    return table


def _score(line: Row) -> str:
    """The method's interval where there is one."""
    shown = []
    if line["value"]:
        prefix = "method_" if line["method_low"] else ""
        low, high = line[f"{prefix}low"], line[f"{prefix}high"]
        shown.append(_percent(line["value"], low, high, ".1f", "\n"))
    if line["paper_percent"]:
        shown.append(f"[dim]paper {line['paper_percent']}[/]")
    return "\n".join(shown)


def _difference(line: Row) -> str:
    from rich.markup import escape

    if not line["difference"]:
        return ""
    prefix = "method_" if line["method_difference"] else ""
    names = [f"{prefix}difference{end}" for end in ("", "_low", "_high")]
    value, low, high = (line[name] for name in names)
    return f"{_percent(value, low, high, '+.1f', chr(10))}\n[dim]{escape(line['baseline'])}[/]"


# ---------------------------------------------------------------- traces side by side
def compared_table(folder: Path) -> Table:
    """Mean reward of two sets of traces on the same questions, and which has the better one."""
    lines = _read(folder / "compared.csv")
    names = [name[7:-1] for name in lines[0] if name.startswith("reward[")]
    table = _table(f"Reward of the traces of {len(lines)} questions")
    for column in ("traces", "mean reward", "better on"):
        table.add_column(column, justify="left" if column == "traces" else "right")
    differences = [float(line["reward_difference"]) for line in lines]
    better = (sum(each < 0 for each in differences), sum(each > 0 for each in differences))
    for name, count in zip(names, better, strict=True):
        mean = sum(float(line[f"reward[{name}]"]) for line in lines) / len(lines)
        table.add_row(name, f"{mean:.3f}", str(count))
    return table


# ---------------------------------------------------------------- all models
def scores_table(folder: Path) -> Table:
    """The scores of a report's folder, over all seeds, in percent."""
    from rich.markup import escape

    table = _table("Scores in percent, with 95% intervals")
    for column in ("task", "model", "metric"):
        table.add_column(column, no_wrap=True)
    for column in ("score", "against base", "questions"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in _read(folder / "scores.csv"):
        if row["seed"] != ALL:
            continue
        score = _percent(row["value"], row["low"], row["high"], ".1f")
        table.add_row(
            escape(row["task"]), escape(row["model"]), row["metric"], score, _gain(row),
            row["questions"],
        )  # fmt: skip
    return table


def _gain(row: Row) -> str:
    value, low, high = (row[f"difference{end}"] for end in ("", "_low", "_high"))
    if not value:
        return ""
    alike = float(low) == float(high) == 0
    return "alike on every question" if alike else _percent(value, low, high, "+.1f")


def _percent(value: str, low: str, high: str, form: str, between: str = " ") -> str:
    value, low, high = (f"{100 * float(each):{form}}" for each in (value, low, high))
    return f"{value}{between}\\[{low}, {high}]"  # the backslash: not rich's markup
