"""The report's tables as CSV: every number, unrounded; a value that does not exist is empty, and
a text that a spreadsheet would take for a formula begins with an apostrophe."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rlt_core.evaluation.intervals import Estimate
from rlt_core.printable import spreadsheet_cell
from rlt_core.report import experiment, overlaps, scores, trace_sets
from rlt_core.report.gather import ReportData
from rlt_core.report.inputs import Row
from rlt_core.report.ranks import RankAblation

ALL = "all"
"""Seed in `scores.csv` of the line over all seeds of a model."""
RANKS = (
    "ranked_by", "task", "quantity", "rank", "seed", "value", "low", "high", "mean_reward",
    "traces",
)  # fmt: skip
"""`quantity`: `score` of the students of a rank, `spread` of a set's, or a statistic over its
ranks; without a seed, over all seeds."""


def write_csv_files(data: ReportData, folder: Path) -> None:
    """Write the CSV files that have content; `scores.csv` and `traces.csv` always."""
    rows = [row | {"seed": ALL if row["seed"] is None else row["seed"]} for row in data.scores]
    _write(folder / "scores.csv", scores.COLUMNS, rows)
    _write(folder / "traces.csv", trace_sets.COLUMNS, data.traces)
    if data.experiment:
        _write(folder / "table.csv", experiment.COLUMNS, data.experiment.rows)
    if data.overlaps:
        _write(folder / "overlaps.csv", overlaps.COLUMNS, data.overlaps)
    if data.compared:
        rows = data.compared["by_question"]
        _write(folder / "compared.csv", list(rows[0]), rows)
    if data.rank_sets:
        _write(folder / "ranks.csv", RANKS, [row for one in data.rank_sets for row in _ranks(one)])


def _write(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    path.write_text(csv_text(columns, rows), encoding="utf-8")


def csv_text(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Return rows as CSV."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in map(_flat, rows):
        writer.writerow({name: spreadsheet_cell(value) for name, value in row.items()})
    return file.getvalue()


def _flat(row: Row) -> Row:
    """An Estimate as the columns `{name}`, `{name}_low` and `{name}_high` (of `value`: `low` and
    `high`), a list or a mapping separated by semicolons."""
    flat: Row = {}
    for name, value in row.items():
        if isinstance(value, Estimate):
            prefix = "" if name == "value" else f"{name}_"
            flat |= {name: value.value, f"{prefix}low": value.low, f"{prefix}high": value.high}
        elif isinstance(value, Mapping):
            pairs = value.items()
            flat[name] = ";".join(f"{'' if key is None else key}:{each}" for key, each in pairs)
        else:
            flat.setdefault(name, ";".join(value) if isinstance(value, list) else value)
    return flat


def _ranks(ranks: RankAblation) -> Iterator[Row]:
    one_set = {"ranked_by": ranks.ranked_by, "task": ranks.task}
    for line in [*ranks.lines, *ranks.statistics]:
        yield one_set | vars(line)
        single = one_set | {"quantity": line.quantity, "rank": line.rank}
        yield from (single | {"seed": s, "value": value} for s, value in line.by_seed.items())
    yield one_set | {"quantity": "spread", "value": ranks.spread}
