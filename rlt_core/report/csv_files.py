"""The report's tables as CSV: every number, unrounded; a value that does not exist is empty."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rlt_core.report import paper
from rlt_core.report.experiment import Experiment, Line, Tested
from rlt_core.report.gather import ReportData
from rlt_core.report.inputs import Row
from rlt_core.report.overlaps import OverlapLine
from rlt_core.report.ranks import RankAblation
from rlt_core.report.scores import ScoreLine
from rlt_core.report.terminal import ALL
from rlt_core.report.trace_sets import TraceSet

SCORES = (
    "task", "model", "metric", "seed", "value", "low", "high", "questions", "samples", "ungraded",
    "grader_failed", "difference", "difference_low", "difference_high",
)  # fmt: skip
TRACES = tuple(field.name for field in fields(TraceSet))
RANKS = (
    "ranked_by", "task", "quantity", "rank", "seed", "value", "low", "high", "mean_reward",
    "traces",
)  # fmt: skip
"""`quantity`: `score` of the students of a rank, `spread` of a set's, or a statistic over its
ranks; without a seed, over all seeds."""
File = tuple[Sequence[str], list[Row]]
"""Columns and rows."""


def csv_files(data: ReportData) -> dict[str, File]:
    """The CSV files that have content; `scores.csv` and `traces.csv` always."""
    files: dict[str, File] = {
        "scores.csv": (SCORES, [_score(line) for line in data.scores]),
        "traces.csv": (TRACES, [vars(line) for line in data.traces]),
    }
    if data.experiment:
        rows = list(_table(data.experiment))
        files["table.csv"] = (list(rows[0]), rows)
    if rows := [row for line in data.overlaps for row in _overlap(line)]:
        files["overlaps.csv"] = (list(rows[0]), rows)
    if data.compared:
        rows = data.compared.by_question
        files["compared.csv"] = (list(rows[0]), rows)
    if data.rank_sets:
        files["ranks.csv"] = (RANKS, [row for one in data.rank_sets for row in _ranks(one)])
    return files


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Rows may lack columns; other values of a row are left out."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _pick(value: Any, *names: str, prefix: str = "") -> Row:
    """Some attributes as columns `{prefix}{name}`; all None for None."""
    return {f"{prefix}{name}": getattr(value, name, None) for name in names}


def _interval(name: str, estimate: Any) -> Row:
    """Columns `{name}`, `{name}_low` and `{name}_high`."""
    ends = _pick(estimate, "low", "high", prefix=f"{name}_")
    return {name: getattr(estimate, "value", None), **ends}


def _score(line: ScoreLine) -> Row:
    seed = ALL if line.seed is None else line.seed
    return vars(line) | {"seed": seed, **_interval("difference", line.difference)}


def _table(experiment: Experiment) -> Iterator[Row]:
    """A row per row of the experiment and task. Ours are fractions, the paper's percent; lists are
    separated by semicolons."""
    for table in experiment.tables:
        for line in table.lines:
            yield _table_row(line, table.task, line.row == experiment.primary)


def _table_row(line: Line, task: str, is_primary: bool) -> Row:
    row, score, against = line.row, line.score, line.against
    by_seed = score.by_seed if score else {}
    gain = line.share if line.share and line.share.denominator.value >= 0 else None
    return {
        "row": row.name, "model": row.model, "task": task, "missing": row.missing,
        "paper_row": row.paper,
        "paper_percent": line.quote.percent if line.quote else None,
        "paper_mean_percent": paper.NUMBERS.get(row.paper or "", {}).get(paper.MEAN),
        "paper_from_others": row.paper in paper.FROM_OTHERS if row.paper else None,
        **_pick(score and score.checkpoint, "value", "low", "high"),
        **_pick(score and score.method, "low", "high", prefix="method_"),
        "by_seed": ";".join(f"{'' if s is None else s}:{value}" for s, value in by_seed.items()),
        **_pick(score, "questions", "samples"),
        "seeds": len(by_seed) or None,
        **_pick(score, "ungraded", "grader_failed"),
        "baseline": row.baseline, "primary": is_primary,
        **_tested("", against.checkpoint if against else None),
        "mcnemar_p": against.mcnemar if against else None,
        **_tested("method_", against.method if against else None),
        **_pick(against, "detectable"),
        "share": gain.value if gain else None,
        "share_set": ";".join(f"{low}:{high}" for low, high in gain.intervals) if gain else None,
        "share_seeds_random": gain.seeds_random if gain else None,
        "model_keys": ";".join(line.models), "evaluation_keys": ";".join(line.evaluations),
    }  # fmt: skip


def _tested(prefix: str, tested: Tested | None) -> Row:
    return {
        **_interval(f"{prefix}difference", tested.difference if tested else None),
        f"{prefix}p": tested.p if tested else None,
        f"{prefix}p_holm": tested.holm if tested else None,
    }


def _overlap(line: OverlapLine) -> Iterator[Row]:
    for name, measure in line.overlap.measures.items():
        yield {
            "first": line.ours, "second": line.theirs, "task": line.task,
            "first_seed": line.ours_seed, "second_seed": line.theirs_seed,
            "questions": line.overlap.questions,
            "solved_by_first": line.overlap.ours, "solved_by_second": line.overlap.theirs,
            "solved_by_both": line.overlap.both,
            "measure": name,
            **_pick(measure, "value", "low", "high", "chance", "chance_low", "chance_high", "p"),
            "ceiling_first": measure.ceiling_ours, "ceiling_second": measure.ceiling_theirs,
            "paper": line.quoted,
        }  # fmt: skip


def _ranks(ranks: RankAblation) -> Iterator[Row]:
    of_set = {"ranked_by": ranks.ranked_by, "task": ranks.task}
    for line in ranks.lines:
        of_rank = of_set | {"quantity": "score", "rank": line.rank}
        yield of_rank | vars(line)
        yield from (of_rank | {"seed": s, "value": value} for s, value in line.by_seed.items())
    for statistic in ranks.statistics:
        of_one = of_set | {"quantity": statistic.name}
        yield of_one | vars(statistic)
        yield from (of_one | {"seed": s, "value": value} for s, value in statistic.by_seed.items())
    yield of_set | {"quantity": "spread", "value": ranks.spread}
