"""Verdicts as people read them: cells of a table, and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rlt_core.study.claims import CLAIM_SEEDS, Study
from rlt_core.study.freeze import Freeze
from rlt_core.study.verdicts import Intervals, Line, Verdict

COLUMNS = ("claim", "statement", "estimate [95%]", "p", "adjusted p", "verdict", "detectable")
POINTS = ("difference", "equivalence")
"""Kinds whose numbers are shown in points: hundredths."""


def cells(verdict: Verdict) -> tuple[str, ...]:
    """One row of `COLUMNS`."""
    unit = 100.0 if verdict.kind in POINTS else 1.0
    adjusted = "control" if verdict.adjusted_p is None else p_value(verdict.adjusted_p)
    return (
        f"{verdict.claim} (primary)" if verdict.primary else verdict.claim,
        verdict.statement,
        f"{number(verdict.estimate, unit, signed=unit > 1)} {_intervals(verdict.intervals, unit)}",
        p_value(verdict.p),
        adjusted,
        f"{verdict.verdict} (pilot)" if verdict.pilot else verdict.verdict,
        number(verdict.detectable, unit),
    )


def number(value: float | None, unit: float = 1.0, signed: bool = False) -> str:
    """Points with one digit, ratios and correlations with two; `·` where there is none."""
    if value is None:
        return "·"
    digits = 1 if unit > 1 else 2
    value = round(value * unit, digits) + 0.0  # no -0.0
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def p_value(value: float) -> str:
    """Three digits; smaller ones as a bound."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _intervals(intervals: Intervals, unit: float) -> str:
    ends = (
        f"[{'-∞' if low is None else number(low, unit)}, "
        f"{'∞' if high is None else number(high, unit)}]"
        for low, high in intervals
    )
    return " and ".join(ends)


def markdown(
    study: Study, freeze: Freeze, verdicts: Sequence[Verdict], rules_as_frozen: bool
) -> str:
    """The verdicts with what they rest on."""
    seeds = ", ".join(map(str, study.seeds))
    frozen = f"{freeze.frozen_at:%Y-%m-%d %H:%M} UTC"
    if freeze.git_commit:
        frozen += f" at commit {freeze.git_commit}"
    rules = (
        "The rules are those of the freeze."
        if rules_as_frozen
        else "**The code of the rules was changed after the freeze.**"
    )
    return "\n".join(
        [
            f"# Verdicts of the study {study.name}",
            "",
            f"Profile {study.profile}, seeds {seeds}, level {study.level:g} of the whole family "
            f"(Holm; the primary claim and controls apart). Frozen {frozen}, study sha256 "
            f"{freeze.study_sha256}. {rules}",
            "",
            *([f"**{note}**", ""] if (note := pilot_note(study)) else []),
            "Differences, with what was detectable of them, are in points; ratios and correlations "
            "are plain. Intervals and tests let training seeds and questions vary.",
            "",
            *_table(COLUMNS, map(cells, verdicts)),
            "",
            *(line for verdict in verdicts for line in _details(verdict)),
            *_regimes(study),
        ]
    )


def pilot_note(study: Study) -> str:
    """The reservation on the verdicts of a study with too few seeds; empty for others."""
    if not study.pilot:
        return ""
    return f"A pilot: it has {len(study.seeds)} seeds, and a claim takes {CLAIM_SEEDS} or more."


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [_row(columns), f"|{' --- |' * len(columns)}"]
    return lines + [_row(row) for row in rows]


def _row(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _details(verdict: Verdict) -> list[str]:
    lines = [f"## {verdict.claim}", "", f"{verdict.statement} **{verdict.verdict}**", ""]
    null = " of no difference" if verdict.kind == "equivalence" else ""
    lines += [f"- {_contrast(one, null)}" for one in verdict.contrasts]
    if test := verdict.rank_test:
        f = "∞" if test.f is None else f"{test.f:.2f}"
        lines.append(
            f"- all students of the set {test.set}, rank x seed: F({test.degrees[0]}, "
            f"{test.degrees[1]}) = {f}, p {p_value(test.p)}"
        )
    lines += [f"- {verdict.questions} questions that all were graded on", ""]
    if verdict.points:
        rows = (
            (str(one.rank), number(one.score, 100.0), number(one.mean_reward))
            for one in verdict.points
        )
        lines += [*_table(("rank", "score", "mean reward"), rows), ""]
    return lines


def _contrast(line: Line, null: str) -> str:
    ends = _intervals(((line.low, line.high),), 100.0)
    alone = f" (over seeds alone {p_value(line.seeds_p)})" if line.seeds_p is not None else ""
    found = f"{number(line.estimate, 100.0, True)} {ends} points, p{null} {p_value(line.p)}"
    return f"{line.what}: {found}{alone}"


def _regimes(study: Study) -> list[str]:
    if not study.regimes:
        return []
    rows = ((one.what, ", ".join(map(str, one.seeds)), one.result) for one in study.regimes)
    return [
        "## Tried before, on other seeds",
        "",
        *_table(("what", "seeds", "result"), rows),
        "",
    ]
