"""Questions that occur twice: near-duplicates in the training data, overlaps with evaluation sets.

Questions are compared by the n-grams of their words, as 64-bit hashes; generated problems by what
they ask for.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from rlt_core.data.generators.arithmetic import SUM, operands_of
from rlt_core.data.rawrow import RawRow, normalised, question_id
from rlt_core.progress import Progress

Row = Mapping[str, Any]
Words = tuple[str, ...]
Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

SHORT, LONG = 8, 13
"""Lengths of the n-grams in words, as in s1 (arXiv 2501.19393) and GPT-3 (2005.14165)."""
TOKEN = re.compile(r'\w+|[^\w\s.,;:?"$\\]')
BLOCK = 1000
"""Number of questions whose words are in memory at once."""
COUNTERS = 64
"""Counters per question, 2 bytes each: most shingles of usual questions have their own."""
FACTORS = np.array([pow(0x9E3779B97F4A7C15, i, 1 << 64) for i in range(LONG)], np.uint64)
SILENT = Progress()


def tokens_of(question: str) -> Words:
    """Return words and signs in normal form, without punctuation but with operators."""
    return tuple(TOKEN.findall(normalised(question)))


def ngram_hashes(texts: Sequence[Sequence[str]], n: int) -> tuple[Hashes, Places]:
    """Return the hashes of all n-grams and the index of each one's text, in order.

    A hash is a polynomial in the hashes of its words, the same within one process. The probability
    that two of the 3e7 n-grams of a million questions collide is 2e-5.
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
    """Map the index of a near-duplicate to the earlier kept row and their similarity.

    Similarity is the exact Jaccard index of the sets of 8-token shingles; a question with fewer
    tokens is one shingle. Generated problems differ by construction and are not compared. Two sets
    with an index >= t share one of the rarest |A| - ceil(t |A|) + 1 shingles of each (prefix
    filter: Chaudhuri et al., ICDE 2006), so that common wording costs nothing. Any order of
    shingles is valid; counters, which several shingles may share, estimate how rare they are.
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
    """Compare rows that share a rare shingle; `groups` has its number, `owners` the row."""

    @lru_cache(maxsize=BLOCK)
    def shingles(place: int) -> frozenset[int]:
        return frozenset(_shingles([rows[place]])[0].tolist())

    kept_with: dict[int, list[int]] = defaultdict(list)
    found: dict[int, tuple[RawRow, float]] = {}
    places, starts = np.unique(owners, return_index=True)
    bounds = pairwise([*starts.tolist(), len(groups)])
    pairs = zip(places.tolist(), bounds, strict=True)
    for place, (start, end) in progress.over(pairs, len(places), BLOCK):
        own = groups[start:end].tolist()
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
    starts = range(0, len(rows), BLOCK)
    for start in progress.over(starts, len(starts)):
        yield start, *_shingles(rows[start : start + BLOCK])


def _shingles(rows: Sequence[RawRow]) -> tuple[Hashes, Places]:
    """Return the distinct shingles of each row and the row's index, in order of the rows."""
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


# ---------------------------------------------------------------- evaluation sets
COMMON_SHARE, COMMON_LEAST = 0.01, 10
"""An n-gram in more than this fraction of the training questions, and in more than this number, is
common wording ("find the sum of all positive integers"), not a sign of a copied question."""


def problem_of(grader: str | None, question: str, metadata: str | None) -> str | None:
    """Return a generated problem, whose numbers have no order where it does not matter; None for a
    written question."""
    if grader == "arithmetic" and '"problem"' in (metadata or ""):
        return str(json.loads(metadata or "")["problem"])
    if grader == "arithmetic" and SUM.fullmatch(question):
        return "+".join(map(str, operands_of(question)))
    if grader == "countdown":
        problem = json.loads(metadata or "")
        return f"{sorted(problem['numbers'])} -> {problem['target']}"
    return None


def _problem(row: Row) -> str | None:
    return problem_of(row["grader"], row["question"], row["metadata"])


def require_disjoint(questions: Iterable[Row], evaluated: Mapping[str, Sequence[Row]]) -> int:
    """Return the number of different generated problems.

    Raises RuntimeError naming the problem if one is in two splits, or if a training problem is in
    an evaluation set, whatever the order of its numbers.
    """
    split_of: dict[str, str] = {}
    for question in questions:
        problem = _problem(question)
        if problem is None:
            continue
        first = split_of.setdefault(problem, question["split"])
        if first != question["split"]:
            raise RuntimeError(f"problem {problem} is in {first} and in {question['split']}")
    for task, rows in evaluated.items():
        for row in rows:
            problem = _problem(row)
            if problem is not None and split_of.get(problem) == "train":
                raise RuntimeError(f"problem {problem} is in train and in evaluation set {task}")
    return len(split_of)


def find_overlaps(
    training: Sequence[RawRow], evaluated: Mapping[str, Sequence[Row]], progress: Progress = SILENT
) -> Iterator[dict[str, Any]]:
    """Yield rows of the table `eval_overlaps`: a training question and a question of an evaluation
    set that share 13 consecutive words, or else 8.

    A question with fewer words is compared as a whole, a generated problem by `problem_of`; then
    `n` is empty. Words with which all questions of a set begin or end (a benchmark's prompt) do not
    count. `evaluated`: questions by task.
    """
    around = {task: _prompt_around(questions) for task, questions in evaluated.items()}

    def asked() -> Iterator[tuple[str, Row, Words]]:
        for task, questions in evaluated.items():
            before, after = around[task]
            for question in questions:
                tokens = tokens_of(question["question"])
                yield task, question, tokens[before : len(tokens) - after]

    index = _Index(((question, tokens) for _, question, tokens in asked()), len(training))
    starts = range(0, len(training), BLOCK)
    for start in progress.over(starts, len(starts)):
        index.add(start, training[start : start + BLOCK])
    for task, question, tokens in asked():
        for place, (n, shared) in index.matches(question, tokens).items():
            yield {
                "question_id": question_id(training[place].question),
                "task": task,
                "evaluation_id": question["question_id"],
                "n": n,
                "shared": shared,
            }


def _prompt_around(questions: Sequence[Row]) -> tuple[int, int]:
    """Return how many first and last words all questions have in common."""
    if len(questions) < 2:
        return 0, 0
    start = _shared_start(tokens_of(row["question"]) for row in questions)
    return start, _shared_start(tokens_of(row["question"])[start:][::-1] for row in questions)


def _shared_start(texts: Iterator[Words]) -> int:
    shared = next(texts)
    for text in texts:
        pairs = enumerate(zip(shared, text, strict=False))
        end = next((i for i, (a, b) in pairs if a != b), min(len(shared), len(text)))
        shared = shared[:end]
    return len(shared)


def _words(tokens: Sequence[str]) -> list[str]:
    return [token for token in tokens if token[0].isalnum()]


class _Index:
    """Training questions by what they share with evaluation sets: problems, n-grams, short ones."""

    def __init__(self, asked: Iterable[tuple[Row, Words]], count: int) -> None:
        self._problems: dict[str, list[int]] = {}
        self._whole: dict[Words, list[int]] = {}
        known = {n: [np.zeros(0, np.uint64)] for n in (LONG, SHORT)}
        for question, tokens in asked:
            problem, words = _problem(question), _words(tokens)
            if problem is not None:
                self._problems[problem] = []
            elif len(words) < SHORT:
                self._whole[tokens] = []
            else:
                for n, hashes in known.items():
                    hashes.append(ngram_hashes([words], n)[0])
        common = max(COMMON_LEAST, COMMON_SHARE * count)
        self._ngrams = {n: _Shared(n, np.concatenate(known[n]), common) for n in known}

    def add(self, start: int, rows: Sequence[RawRow]) -> None:
        """Add training questions, the first of which has the index `start`."""
        texts: list[list[str]] = []
        for place, row in enumerate(rows, start):
            problem = problem_of(row.grader, row.question, row.metadata)
            tokens = () if problem else tokens_of(row.question)
            words = _words(tokens)
            if problem is not None:
                self._problems.get(problem, []).append(place)
            elif len(words) < SHORT:
                self._whole.get(tokens, []).append(place)
            texts.append(words if len(words) >= SHORT else [])
        for ngrams in self._ngrams.values():
            ngrams.add(start, texts)

    def matches(self, question: Row, tokens: Words) -> dict[int, tuple[int | None, str]]:
        """Map the index of a training question to (n, shared words), with the longest n."""
        problem = _problem(question)
        if problem is not None:
            return dict.fromkeys(self._problems[problem], (None, problem))
        found: dict[int, tuple[int | None, str]] = {}
        words = _words(tokens)
        for n, ngrams in self._ngrams.items():
            for start, places in ngrams.places_of(words):
                for place in places:
                    found.setdefault(place, (n, " ".join(words[start : start + n])))
        for place in self._whole.get(tokens, ()):
            found[place] = (None, " ".join(tokens))
        return found


class _Shared:
    """Training questions by their n-grams of evaluation sets, if at most `common` have it."""

    def __init__(self, n: int, hashes: Hashes, common: float) -> None:
        self._n, self._common = n, common
        self._known = np.unique(hashes)
        self._counts = np.zeros(len(self._known), np.int64)
        self._places: dict[int, list[int]] = defaultdict(list)

    def add(self, start: int, texts: Sequence[Sequence[str]]) -> None:
        if not len(self._known):
            return
        hashes, owner = ngram_hashes(texts, self._n)
        spots = np.searchsorted(self._known, hashes)
        spots[spots == len(self._known)] = 0
        there = self._known[spots] == hashes
        pairs = np.unique(spots[there] * BLOCK + owner[there])
        spots, owner = np.divmod(pairs, BLOCK)
        self._counts += np.bincount(spots, minlength=len(self._known))
        rare = self._counts[spots] <= self._common
        for spot, place in zip(spots[rare].tolist(), owner[rare].tolist(), strict=True):
            self._places[spot].append(start + place)

    def places_of(self, words: Sequence[str]) -> Iterator[tuple[int, list[int]]]:
        """Yield start and training questions of each shared n-gram."""
        hashes, _ = ngram_hashes([words], self._n)
        for start, spot in enumerate(np.searchsorted(self._known, hashes).tolist()):
            if spot in self._places and self._counts[spot] <= self._common:
                yield start, self._places[spot]
