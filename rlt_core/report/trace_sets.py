"""Scored trace sets: the baselines of the reward and the diagnostics beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlt_core.report.inputs import Parts, Row
from rlt_core.reward.diagnostics import (
    CLIPPED_ALARM,
    COMPRESSION_ALARM,
    COPIED_ALARM,
    NGRAM_TOKENS,
    SHORTEST_BYTES,
    explanation_alarms,
)

MEANS = (
    "copied", "compression", "doubt", "clipped", "think_tokens", "think_mean", "rank_surprisal",
)  # fmt: skip
"""Columns of `scores` whose means a trace set has."""
NOTE = (
    "Means over the traces that have a value. Copied: percent of the solution's runs of "
    f"{NGRAM_TOKENS} tokens that are also in the explanation (a shorter solution has none). "
    f"Compression: bytes per compressed byte, of texts of {SHORTEST_BYTES} bytes or more. Doubt: "
    "words of doubt per 1,000 tokens (arXiv 2603.24472). Cut: percent that reached the token "
    "limit. Log-prob: the student's mean log-prob of the explanation's tokens. Rank-surprisal: "
    "the ratio of arXiv 2601.14249, lower is better. An alarm is raised above "
    f"{100 * COPIED_ALARM:g}% copied, {COMPRESSION_ALARM:g} times compressed, "
    f"{100 * CLIPPED_ALARM:g}% cut."
)


COLUMNS = ("name", "traces", *MEANS)
"""Columns of `traces.csv`."""


def trace_sets(parts: Parts) -> list[Row]:
    """One row per artifact of trace-scoring, in the order of the graph; None where no trace has the
    value."""
    found = []
    for part in parts.of("trace-scoring"):
        rows = part.rows("scores", *MEANS)
        means = {name: known_mean([row[name] for row in rows]) for name in MEANS}
        found.append({"name": part.name, "traces": len(rows), **means})
    return found


def known_mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are not None."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def diagnostic_alarms(
    name: str,
    texts: str,
    *,
    copied: float | None,
    compression: float | None,
    clipped: float | None,
) -> Iterator[str]:
    """The alarms of the diagnostics in words: for an artifact, about these texts of it."""
    said = {
        "alarm_copied": f"{100 * (copied or 0):.0f}% of the solutions' runs of {NGRAM_TOKENS} "
        f"tokens are also in {texts} (alarm above {100 * COPIED_ALARM:g}%)",
        "alarm_repetition": f"{texts} compress {compression or 0:.1f} times, as repetition does "
        f"(alarm above {COMPRESSION_ALARM:g})",
        "alarm_over_length": f"{100 * (clipped or 0):.0f}% of {texts} are cut at the token limit "
        f"(alarm above {100 * CLIPPED_ALARM:g}%)",
    }
    alarms = explanation_alarms(copied, compression, clipped)
    yield from (f"{name}: {text}" for alarm, text in said.items() if alarms[alarm])
