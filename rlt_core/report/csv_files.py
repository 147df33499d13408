"""The report's tables as CSV: every number, unrounded; a value that there is not is empty."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlt_core.evaluation.intervals import Estimate
from rlt_core.report import paper
from rlt_core.report.gather import ReportData
from rlt_core.report.experiment import Against, Experiment, Line, Tested
from rlt_core.report.overlaps import OverlapLine
from rlt_core.report.ranks import RankAblation
from rlt_core.report.scores import write_csv
from rlt_core.report.traces import write_traces_csv

TABLE = (
    "row", "model", "task", "missing", "paper_row", "paper_percent", "paper_mean_percent",
    "paper_from_others", "value", "low", "high", "method_low", "method_high", "by_seed",
    "questions", "samples", "seeds", "ungraded", "grader_failed", "baseline", "primary",
    "difference", "difference_low", "difference_high", "p", "p_holm", "mcnemar_p",
    "method_difference",
    "method_difference_low", "method_difference_high", "method_p", "method_p_holm", "detectable",
    "share", "share_set", "share_seeds_random", "model_keys", "evaluation_keys",
)  # fmt: skip
"""Columns of `table.csv`, a line a row and task. Ours are fractions, the paper's percent; lists
are separated by semicolons."""
OVERLAPS = (
    "first", "second", "task", "first_seed", "second_seed", "questions", "solved_by_first",
    "solved_by_second", "solved_by_both", "measure", "value", "low", "high", "chance",
    "chance_low", "chance_high", "p", "ceiling_first", "ceiling_second", "paper",
)  # fmt: skip
RANKS = (
    "ranked_by", "task", "quantity", "rank", "seed", "value", "low", "high", "mean_reward",
    "traces",
)  # fmt: skip
"""Columns of `ranks.csv`. `quantity`: `score` of the students of a rank, `spread` of a set's, or a
statistic over its ranks; without a seed, over all of them."""


def write_csv_files(data: ReportData, out: Path) -> None:
    """Those that have content; `scores.csv` and `traces.csv` always."""
    write_csv(data.scores, out / "scores.csv")
    write_traces_csv(data.traces, out / "traces.csv")
    if data.experiment:
        write(out / "table.csv", TABLE, _table(data.experiment))
    if data.overlaps:
        write(out / "overlaps.csv", OVERLAPS, _overlaps(data.overlaps))
    if data.compared:
        rows = data.compared.by_question
        write(out / "compared.csv", list(rows[0]), rows)
    if data.rank_sets:
        write(out / "ranks.csv", RANKS, _ranks(data.rank_sets))


def write(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows may lack columns. Raises ValueError for a column that there is not."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _ends(name: str, estimate: Estimate | None) -> dict[str, float]:
    if estimate is None:
        return {}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


# ---------------------------------------------------------------- table.csv
def _table(experiment: Experiment) -> Iterator[dict[str, Any]]:
    primary = experiment.primary.model if experiment.primary else None
    for table in experiment.tables:
        for line in table.lines:
            yield {
                "row": line.row.name,
                "model": line.row.model,
                "task": table.task,
                "missing": line.row.missing,
                "paper_row": line.row.paper,
                "paper_percent": line.quote.percent if line.quote else None,
                "paper_mean_percent": paper.NUMBERS.get(line.row.paper or "", {}).get(paper.MEAN),
                "paper_from_others": line.row.paper in paper.FROM_OTHERS if line.row.paper else "",
                "baseline": line.row.baseline,
                "primary": line.row.model == primary,
                "model_keys": ";".join(line.models),
                "evaluation_keys": ";".join(line.evaluations),
                **_score(line),
                **(_against(line.against) if line.against else {}),
                **_share(line),
            }


def _score(line: Line) -> dict[str, Any]:
    score = line.score
    if score is None:
        return {}
    found = {
        "value": score.checkpoint.value,
        "low": score.checkpoint.low,
        "high": score.checkpoint.high,
        "by_seed": ";".join(
            f"{'' if seed is None else seed}:{value}" for seed, value in score.by_seed.items()
        ),
        "questions": score.questions,
        "samples": score.samples,
        "seeds": len(score.by_seed),
        "ungraded": score.ungraded,
        "grader_failed": score.grader_failed,
    }
    if score.method:
        found |= {"method_low": score.method.low, "method_high": score.method.high}
    return found


def _against(against: Against) -> dict[str, Any]:
    def tested(prefix: str, one: Tested) -> dict[str, Any]:
        tests = {f"{prefix}p": one.p, f"{prefix}p_holm": one.holm}
        return _ends(f"{prefix}difference", one.difference) | tests

    return {
        **tested("", against.checkpoint),
        **(tested("method_", against.method) if against.method else {}),
        "mcnemar_p": against.mcnemar,
        "detectable": against.detectable,
    }


def _share(line: Line) -> dict[str, Any]:
    if line.share is None or line.share.denominator.value < 0:  # no gain, no share
        return {}
    return {
        "share": line.share.value,
        "share_set": ";".join(f"{low}:{high}" for low, high in line.share.intervals),
        "share_seeds_random": line.share.seeds_random,
    }


# ---------------------------------------------------------------- the others
def _overlaps(lines: Sequence[OverlapLine]) -> Iterator[dict[str, Any]]:
    for line in lines:
        found = line.overlap
        for name, measure in found.measures.items():
            values = dict(vars(measure))
            ceilings = {
                "ceiling_first": values.pop("ceiling_ours"),
                "ceiling_second": values.pop("ceiling_theirs"),
            }
            yield {
                "first": line.ours,
                "second": line.theirs,
                "task": line.task,
                "first_seed": line.ours_seed,
                "second_seed": line.theirs_seed,
                "questions": found.questions,
                "solved_by_first": found.ours,
                "solved_by_second": found.theirs,
                "solved_by_both": found.both,
                "measure": name,
                "paper": line.quoted,
                **values,
                **ceilings,
            }


def _ranks(sets: Sequence[RankAblation]) -> Iterator[dict[str, Any]]:
    for one in sets:
        of_set = {"ranked_by": one.ranked_by, "task": one.task}
        for line in one.lines:
            of_rank = of_set | {"quantity": "score", "rank": line.rank}
            ends = {"value": line.value, "low": line.low, "high": line.high}
            yield of_rank | ends | {"mean_reward": line.mean_reward, "traces": line.traces}
            for seed, value in line.by_seed.items():
                yield of_rank | {"seed": seed, "value": value}
        for statistic in one.statistics:
            of_statistic = of_set | {"quantity": statistic.name}
            ends = {name: getattr(statistic, name) for name in ("value", "low", "high")}
            yield of_statistic | ends
            for seed, value in statistic.by_seed.items():
                yield of_statistic | {"seed": seed, "value": value}
        yield of_set | {"quantity": "spread", "value": one.spread}
