"""Verdicts for people: cells of a table, and Markdown."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlt_core.report.texts import p_value
from rlt_core.study.claims import CLAIM_SEEDS, Study
from rlt_core.study.freeze import Freeze
from rlt_core.study.verdicts import Intervals, Verdict

COLUMNS = ("claim", "statement", "estimate [95%]", "p", "adjusted p", "verdict", "detectable")
POINTS = ("difference", "equivalence")
"""Kinds whose numbers are shown in points: hundredths."""


def cells(verdict: Verdict) -> tuple[str, ...]:
    """One row of `COLUMNS`."""
    unit = 100.0 if verdict.kind in POINTS else 1.0
    return (
        f"{verdict.claim} (primary)" if verdict.primary else verdict.claim,
        verdict.statement,
        f"{_number(verdict.estimate, unit, signed=unit > 1)} {_sets(verdict.intervals, unit)}",
        p_value(verdict.p),
        "control" if verdict.adjusted_p is None else p_value(verdict.adjusted_p),
        f"{verdict.verdict} (pilot)" if verdict.pilot else verdict.verdict,
        _number(verdict.detectable, unit),
    )


def _number(value: float | None, unit: float = 1.0, signed: bool = False) -> str:
    """Points with one digit, ratios and correlations with two; `·` where there is none."""
    if value is None:
        return "·"
    digits = 1 if unit > 1 else 2
    value = round(value * unit, digits) + 0.0  # no -0.0
    return f"{value:{'+' if signed else ''}.{digits}f}"


def _sets(intervals: Intervals, unit: float) -> str:
    return " and ".join(
        f"[{'-∞' if low is None else _number(low, unit)}, "
        f"{'∞' if high is None else _number(high, unit)}]"
        for low, high in intervals
    )


def pilot_note(study: Study) -> str:
    """The reservation on the verdicts of a study with too few seeds; empty for others."""
    if not study.pilot:
        return ""
    return f"A pilot: it has {len(study.seeds)} seeds, and a claim takes {CLAIM_SEEDS} or more."


def markdown(study: Study, freeze: Freeze, verdicts: Sequence[Verdict], rules_sha256: str) -> str:
    """The text of `verdicts.md`; `rules_sha256`: the rules by which the study was judged."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["cell"] = lambda text: text.replace("|", "\\|").replace("\n", " ")
    text = environment.get_template("verdicts.md.jinja").render(
        study=study, freeze=freeze, verdicts=verdicts, rules_sha256=rules_sha256,
        note=pilot_note(study), COLUMNS=COLUMNS, cells=cells, number=_number, sets=_sets,
        p_value=p_value,
    )  # fmt: skip
    return text.rstrip("\n") + "\n"
