"""What a scored trace set looks like beside its reward: rivals of the reward, and the guards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlt_core.guards import (
    CLIPPED_ALARM,
    COMPRESSION_ALARM,
    COPIED_ALARM,
    NGRAM_TOKENS,
    SHORTEST_BYTES,
    guard_alarms,
)
from rlt_core.report.inputs import Part, Parts

MEANS = (
    "copied", "compression", "doubt", "clipped", "think_tokens", "think_mean", "rank_surprisal",
)  # fmt: skip
"""Columns of `scores` of which a line has the mean."""
NOTE = (
    "Means over the traces that have a value. Copied: percent of the solution's runs of "
    f"{NGRAM_TOKENS} tokens that stand in the explanation (a shorter solution has none). "
    f"Compression: bytes a compressed byte, of texts of {SHORTEST_BYTES} bytes and more. Doubt: "
    "words of doubt per 1,000 tokens (arXiv 2603.24472). Cut: percent that reached the token "
    "limit. Log-prob: the student's mean log-prob of the explanation's tokens. Rank-surprisal: "
    "the ratio of arXiv 2601.14249, lower is better. There is an alarm above "
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
    """A line an artifact, in the order of the graph."""
    return [_trace_set(part) for part in parts.of("trace-scoring")]


def _trace_set(part: Part) -> TraceSet:
    rows = part.rows("scores", *MEANS)
    means = {name: known_mean([row[name] for row in rows]) for name in MEANS}
    return TraceSet(name=part.name, traces=len(rows), **means)


def known_mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that there are."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def guard_lines(
    name: str,
    what: str,
    *,
    copied: float | None,
    compression: float | None,
    clipped: float | None,
) -> Iterator[str]:
    """The guards' alarms in words: of an artifact, about `what` of it."""
    alarms = guard_alarms(copied, compression, clipped)
    if alarms["alarm_copied"] and copied is not None:
        yield (
            f"{name}: {100 * copied:.0f}% of the solutions' runs of {NGRAM_TOKENS} tokens stand in "
            f"{what} (alarm above {100 * COPIED_ALARM:g}%)"
        )
    if alarms["alarm_repetition"] and compression is not None:
        yield (
            f"{name}: {what} compress {compression:.1f} times, as repetition does (alarm above "
            f"{COMPRESSION_ALARM:g})"
        )
    if alarms["alarm_over_length"] and clipped is not None:
        yield (
            f"{name}: {100 * clipped:.0f}% of {what} are cut at the token limit (alarm above "
            f"{100 * CLIPPED_ALARM:g}%)"
        )
