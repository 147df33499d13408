"""Runs of words as 64-bit hashes, and the questions that have most of them in common."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rlt_core.data.rawrow import RawRow, normalised
from rlt_core.progress import Progress

Words = tuple[str, ...]
Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

SHORT, LONG = 8, 13
"""Lengths of the n-grams, in words: those of s1 (arXiv 2501.19393) and of GPT-3 (2005.14165)."""
TOKEN = re.compile(r'\w+|[^\w\s.,;:?"$\\]')
BLOCK = 1000
"""Questions whose words are in memory at a time."""
COUNTERS = 64
"""Counters per question, 2 bytes each: most shingles of usual questions have one alone."""
FACTORS = np.array([pow(0x9E3779B97F4A7C15, i, 1 << 64) for i in range(LONG)], np.uint64)
SILENT = Progress()


def tokens_of(question: str) -> Words:
    """Words and signs in normal form; punctuation is left out, what calculates is not."""
    return tuple(TOKEN.findall(normalised(question)))


def ngram_hashes(texts: Sequence[Sequence[str]], n: int) -> tuple[Hashes, Places]:
    """Hashes of all n-grams and the place of the text that each is in, in order.

    A hash is a polynomial in the hashes of its words, the same within one process. Among the 3e7
    n-grams of a million questions two that differ have one hash with a probability of 2e-5.
    """
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    words = np.fromiter((hash(word) for text in texts for word in text), np.int64, lengths.sum())
    owner = np.repeat(np.arange(len(texts)), lengths)
    count = max(0, len(words) - n + 1)
    hashes = np.zeros(count, np.uint64)
    for i in range(n):
        hashes += words[i : i + count].view(np.uint64) * FACTORS[i]
    inside = owner[:count] == owner[len(owner) - count :]
    return hashes[inside], owner[:count][inside]


def near_duplicates(
    rows: Sequence[RawRow], threshold: float, progress: Progress = SILENT
) -> dict[int, tuple[RawRow, float]]:
    """Place of a row -> the earlier kept row that it resembles, and how much.

    Resemblance is the Jaccard index of the sets of 8-token shingles, exact; a question of fewer
    tokens is one shingle. Generated problems differ by construction and are not compared. Two sets
    of index >= t share one of the rarest |A| - ceil(t |A|) + 1 shingles of each (prefix filter:
    Chaudhuri et al., ICDE 2006), so that common wording costs nothing. Any order serves; a fixed
    number of counters, which shingles share, tells which are rare.
    """
    counters = np.zeros(COUNTERS * len(rows) + 1, np.uint16)
    sizes = np.zeros(len(rows), np.int64)
    for start, hashes, owner in _blocks(rows, progress.part(0, 3)):
        sizes[start : start + BLOCK] = np.bincount(owner, minlength=len(rows[start:][:BLOCK]))
        slots, counts = np.unique(hashes % len(counters), return_counts=True)
        counters[slots] = np.minimum(counters[slots] + counts, np.iinfo(np.uint16).max)
    prefix = sizes - np.ceil(threshold * sizes).astype(np.int64) + 1
    shared, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for start, hashes, owner in _blocks(rows, progress.part(1, 3)):
        often = counters[hashes % len(counters)]
        order = np.lexsort((hashes, often, owner))
        rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
        kept = (rank < prefix[start + owner]) & (often[order] > 1)
        shared.append(hashes[order][kept])
        owners.append(start + owner[kept])
    _, group, size = np.unique(np.concatenate(shared), return_inverse=True, return_counts=True)
    several = size[group] > 1
    return _alike(
        rows, threshold, sizes, group[several], np.concatenate(owners)[several], progress.part(2, 3)
    )


def _alike(
    rows: Sequence[RawRow],
    threshold: float,
    sizes: Places,
    groups: Places,
    owners: Places,
    progress: Progress,
) -> dict[int, tuple[RawRow, float]]:
    """Of rows that share a rare shingle (its number in `groups`), those that are alike."""

    @lru_cache(maxsize=BLOCK)
    def shingles(place: int) -> frozenset[int]:
        return frozenset(_shingles([rows[place]])[0].tolist())

    kept_with: dict[int, list[int]] = defaultdict(list)
    found: dict[int, tuple[RawRow, float]] = {}
    places, starts = np.unique(owners, return_index=True)
    bounds = pairwise([*starts.tolist(), len(groups)])
    for done, (place, (start, end)) in enumerate(zip(places.tolist(), bounds, strict=True)):
        own = groups[start:end].tolist()
        if done % BLOCK == 0:
            progress.check()
            progress.report(done, len(places), {})
        for other in sorted({other for group in own for other in kept_with[group]}):
            if min(sizes[place], sizes[other]) < threshold * max(sizes[place], sizes[other]):
                continue
            mine, theirs = shingles(place), shingles(other)
            similarity = len(mine & theirs) / len(mine | theirs)
            if similarity >= threshold:
                found[place] = (rows[other], similarity)
                break
        else:
            for group in own:
                kept_with[group].append(place)
    return found


def _blocks(rows: Sequence[RawRow], progress: Progress) -> Iterator[tuple[int, Hashes, Places]]:
    for start in range(0, len(rows), BLOCK):
        progress.check()
        progress.report(start, len(rows), {})
        yield start, *_shingles(rows[start : start + BLOCK])


def _shingles(rows: Sequence[RawRow]) -> tuple[Hashes, Places]:
    """Different shingles of each row, and the row's place, in order of the rows."""
    # Generated rows have a grader.
    tokens = [() if row.grader else tokens_of(row.question) for row in rows]
    hashes, owner = ngram_hashes(tokens, SHORT)
    short = [place for place, text in enumerate(tokens) if 0 < len(text) < SHORT]
    whole = np.array([hash(tokens[place]) for place in short], np.int64).view(np.uint64)
    hashes, owner = np.concatenate([hashes, whole]), np.concatenate([owner, short]).astype(np.int64)
    order = np.lexsort((hashes, owner))
    hashes, owner = hashes[order], owner[order]
    first = np.ones(len(owner), bool)
    first[1:] = (hashes[1:] != hashes[:-1]) | (owner[1:] != owner[:-1])
    return hashes[first], owner[first]
