"""Verdicts for people: cells of a table, and Markdown."""

from collections.abc import Iterable, Iterator, Sequence

from rlt_core.study.claims import CLAIM_SEEDS, Study
from rlt_core.study.freeze import Freeze
from rlt_core.study.verdicts import Intervals, Line, Verdict

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
        _p_value(verdict.p),
        "control" if verdict.adjusted_p is None else _p_value(verdict.adjusted_p),
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


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


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


# ---------------------------------------------------------------- Markdown
def markdown(study: Study, freeze: Freeze, verdicts: Sequence[Verdict], rules_sha256: str) -> str:
    """The text of `verdicts.md`; `rules_sha256`: the rules by which the study was judged."""
    return "\n".join(_lines(study, freeze, verdicts, rules_sha256 == freeze.rules_sha256))


def _lines(
    study: Study, freeze: Freeze, verdicts: Sequence[Verdict], rules_as_frozen: bool
) -> Iterator[str]:
    commit = f" at commit {freeze.git_commit}" if freeze.git_commit else ""
    yield f"# Verdicts of the study {study.name}\n"
    yield (
        f"Profile {study.profile}, seeds {', '.join(map(str, study.seeds))}, level "
        f"{study.level:g} of the whole family (Holm; the primary claim and controls apart). Frozen "
        f"{freeze.frozen_at:%Y-%m-%d %H:%M} UTC{commit}, study sha256 {freeze.study_sha256}. "
    ) + (
        "The rules are those of the freeze.\n"
        if rules_as_frozen
        else "**The code of the rules was changed after the freeze.**\n"
    )
    if note := pilot_note(study):
        yield f"**{note}**\n"
    yield (
        "Differences, with what was detectable of them, are in points; ratios and correlations "
        "are plain. Intervals and tests let training seeds and questions vary.\n"
    )
    yield _table(COLUMNS, map(cells, verdicts))
    for verdict in verdicts:
        yield from _details(verdict)
    if study.regimes:
        yield "## Tried before, on other seeds\n"
        rows = ((one.what, ", ".join(map(str, one.seeds)), one.result) for one in study.regimes)
        yield _table(("what", "seeds", "result"), rows)


def _details(verdict: Verdict) -> Iterator[str]:
    yield f"## {verdict.claim}\n\n{verdict.statement} **{verdict.verdict}**\n"
    null = " of no difference" if verdict.kind == "equivalence" else ""
    yield from (_contrast(line, null) for line in verdict.contrasts)
    if test := verdict.rank_test:
        f = "∞" if test.f is None else f"{test.f:.2f}"
        yield (
            f"- all students of the set {test.set}, rank x seed: F({test.degrees[0]}, "
            f"{test.degrees[1]}) = {f}, p {_p_value(test.p)}"
        )
    yield f"- {verdict.questions} questions that all were graded on\n"
    if verdict.points:
        rows = (
            (str(one.rank), _number(one.score, 100.0), _number(one.mean_reward))
            for one in verdict.points
        )
        yield _table(("rank", "score", "mean reward"), rows)


def _contrast(line: Line, null: str) -> str:
    alone = f" (over seeds alone {_p_value(line.seeds_p)})" if line.seeds_p is not None else ""
    estimate = f"{_number(line.estimate, 100.0, True)} {_sets(((line.low, line.high),), 100.0)}"
    return f"- {line.what}: {estimate} points, p{null} {_p_value(line.p)}{alone}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table and an empty line."""
    lines = [
        " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row)
        for row in (columns, *rows)
    ]
    lines.insert(1, " | ".join("---" for _ in columns))
    return "".join(f"| {line} |\n" for line in lines)
