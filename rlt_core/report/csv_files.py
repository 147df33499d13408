"""The report's tables as CSV: every number, unrounded; a value that does not exist is empty, and
a text that a spreadsheet would take for a formula begins with an apostrophe."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rlt_core.evaluation.intervals import Estimate
from rlt_core.printable import spreadsheet_cell
from rlt_core.report import experiment, overlaps, ranks, scores, trace_sets
from rlt_core.report.gather import ReportData
from rlt_core.report.inputs import Row


def write_csv_files(data: ReportData, folder: Path) -> None:
    """Write the CSV files that have content; `scores.csv` and `traces.csv` always."""
    files: dict[str, tuple[Sequence[str], Iterable[Row]]] = {
        "scores": (scores.COLUMNS, data.evaluations.scores),
        "traces": (("name", "traces", *trace_sets.MEANS), data.traces),
    }
    if data.experiment:
        files["table"] = (experiment.COLUMNS, data.experiment.rows)
    if data.overlaps:
        files["overlaps"] = (overlaps.COLUMNS, data.overlaps)
    if data.compared:
        rows = data.compared["by_question"]
        files["compared"] = ([*rows[0]], rows)
    if data.rank_sets:
        files["ranks"] = (ranks.COLUMNS, [row for one in data.rank_sets for row in one.rows])
    for name, (columns, rows) in files.items():
        (folder / f"{name}.csv").write_text(csv_text(columns, rows), encoding="utf-8")


def csv_text(columns: Sequence[str], rows: Iterable[Row]) -> str:
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
