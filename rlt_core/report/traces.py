"""Scored trace sets: the baselines of the reward and the diagnostics beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlt_core.report.inputs import Parts
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


@dataclass(frozen=True)
class TraceSet:
    """One artifact of trace-scoring; None where no trace has the value."""

    name: str
    traces: int
    copied: float | None
    compression: float | None
    doubt: float | None
    clipped: float | None
    think_tokens: float | None
    think_mean: float | None
    rank_surprisal: float | None


def trace_sets(parts: Parts) -> list[TraceSet]:
    """One per artifact, in the order of the graph."""
    found = []
    for part in parts.of("trace-scoring"):
        rows = part.rows("scores", *MEANS)
        means = {name: known_mean([row[name] for row in rows]) for name in MEANS}
        found.append(TraceSet(part.name, len(rows), **means))
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
    alarms = explanation_alarms(copied, compression, clipped)
    if alarms["alarm_copied"] and copied is not None:
        yield (
            f"{name}: {100 * copied:.0f}% of the solutions' runs of {NGRAM_TOKENS} tokens are also "
            f"in {texts} (alarm above {100 * COPIED_ALARM:g}%)"
        )
    if alarms["alarm_repetition"] and compression is not None:
        yield (
            f"{name}: {texts} compress {compression:.1f} times, as repetition does (alarm above "
            f"{COMPRESSION_ALARM:g})"
        )
    if alarms["alarm_over_length"] and clipped is not None:
        yield (
            f"{name}: {100 * clipped:.0f}% of {texts} are cut at the token limit (alarm above "
            f"{100 * CLIPPED_ALARM:g}%)"
        )
