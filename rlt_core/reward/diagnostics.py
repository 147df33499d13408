"""Diagnostics of explanations that earn a reward without explaining. Nothing is filtered by them.

Two failures, copying and repetition, are measured here; a third, truncation at the token limit, is
the finish reason `length` of a completion. Doubt works the other way: a teacher that knows the
solution expresses less of it, and its students generalise worse out of domain (arXiv 2603.24472).
"""

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NGRAM_TOKENS = 8
"""Length of the token n-grams that `copied` counts: long enough that an explanation which merely
mentions the same quantities shares few of them with the solution."""
SHORTEST_BYTES = 200
"""Shortest text with a compression ratio: below it, zlib's header and code tables dominate."""
COMPRESSION_LEVEL = 6
"""zlib's default, written down because the measure depends on it."""

COPIED_ALARM = 0.5
"""Mean share of copied n-grams above which there is an alarm: the explanation contains more than
half of the solution verbatim, so that predicting it is copying."""
COMPRESSION_ALARM = 6.0
"""Mean compression above which there is an alarm: prose and worked mathematics compress 2 to 4
times; 6 times takes a text that repeats most of itself."""
CLIPPED_ALARM = 0.1
"""Share of truncated completions above which there is an alarm: each of them pays the penalty of an
unclosed explanation, so that the reward measures the limit, not the explanation."""

DOUBT = (
    "wait", "hmm*", "maybe", "perhaps", "possibly", "actually", "alternatively", "but", "however",
    "might", "seems?", "likely", "probably", "unsure", "uncertain", "not sure", "i think",
    "i guess", "let me (?:re-?)?check", "let me double[- ]check", "let me verify",
    "let me reconsider", "let me think again", "on second thought", "what if",
)  # fmt: skip
"""Words of doubt in English, as regular expressions for whole words in any case: wait, hmm, maybe,
perhaps, let me check are the markers that arXiv 2603.24472 studies; the others are similar
hesitations, second thoughts and hedges. A phrase counts once, whatever white space is between its
words."""
_DOUBT = re.compile(
    r"\b(?:" + "|".join(word.replace(" ", r"\s+") for word in DOUBT) + r")\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Diagnostics:
    """Measurements of one explanation."""

    copied: float | None
    """Share of the solution's distinct token n-grams in the explanation, 0 to 1. None for
    a solution of fewer than `NGRAM_TOKENS` tokens: an explanation may well end with a short answer,
    which is no sign of copying."""
    compression: float | None
    """Bytes of the text in UTF-8 per byte of its zlib compression: repetition makes it large. None
    below `SHORTEST_BYTES` bytes."""
    doubt: float
    """Words of doubt per 1,000 tokens of the explanation; 0 for an empty one."""


def diagnose(text: str, think_ids: Sequence[int], solution_ids: Sequence[int]) -> Diagnostics:
    """Measure one explanation: its text, its tokens (T,) and those of the solution (S,)."""
    return Diagnostics(
        copied=_copied(think_ids, solution_ids),
        compression=_compression(text),
        doubt=1000 * len(_DOUBT.findall(text)) / len(think_ids) if think_ids else 0.0,
    )


def explanation_alarms(
    copied: float | None, compression: float | None, clipped: float | None
) -> dict[str, float]:
    """Return the alarms of a set of explanations from its means (`clipped`: a share), 1.0 or 0.0
    each; a missing value raises none."""
    return {
        "alarm_copied": float(copied is not None and copied > COPIED_ALARM),
        "alarm_repetition": float(compression is not None and compression > COMPRESSION_ALARM),
        "alarm_over_length": float(clipped is not None and clipped > CLIPPED_ALARM),
    }


def _copied(think_ids: Sequence[int], solution_ids: Sequence[int]) -> float | None:
    wanted = set(_ngrams(solution_ids))
    return len(wanted.intersection(_ngrams(think_ids))) / len(wanted) if wanted else None


def _ngrams(ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return zip(*(ids[start:] for start in range(NGRAM_TOKENS)), strict=False)


def _compression(text: str) -> float | None:
    data = text.encode()
    if len(data) < SHORTEST_BYTES:
        return None
    return len(data) / len(zlib.compress(data, COMPRESSION_LEVEL))
