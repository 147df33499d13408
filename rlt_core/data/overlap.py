"""Questions that say the same: near-duplicates, and what training shares with evaluation sets."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlt_core.data.arithmetic import operands_of
from rlt_core.data.rawrow import RawRow, normalised

Row = Mapping[str, Any]
Words = tuple[str, ...]

SHORT, LONG = 8, 13
"""Lengths of the n-grams, in words: those of s1 (arXiv 2501.19393) and of GPT-3 (2005.14165)."""
COMMON_SHARE, COMMON_LEAST = 0.01, 10
"""An n-gram in more than this share of the training questions, and in more than so many, is their
wording ("find the sum of all positive integers"), not a sign of a copied question."""
TOKEN = re.compile(r'\w+|[^\w\s.,;:?"$\\]')


def tokens_of(question: str) -> Words:
    """Words and signs in normal form; punctuation is left out, what calculates is not."""
    return tuple(TOKEN.findall(normalised(question)))


def _ngrams(words: Sequence[str], n: int) -> list[Words]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


# ---------------------------------------------------------------- near-duplicates
def near_duplicates(rows: Sequence[RawRow], threshold: float) -> dict[int, tuple[RawRow, float]]:
    """Place of a row -> the earlier kept row that it resembles, and how much.

    Resemblance is the Jaccard index of the sets of 8-token shingles, exact; a question of fewer
    tokens is one shingle. Generated problems differ by construction and are not compared. Two sets
    of index >= t share one of the rarest |A| - ceil(t |A|) + 1 shingles of each (prefix filter:
    Chaudhuri et al., ICDE 2006), so that common wording costs nothing.
    """
    shingles = [
        set() if row.grader else _shingles(tokens_of(row.question)) for row in rows
    ]  # generated rows have a grader
    frequency = Counter(shingle for one in shingles for shingle in one)
    index: dict[Words, list[int]] = defaultdict(list)
    found: dict[int, tuple[RawRow, float]] = {}
    for place, mine in enumerate(shingles):
        rarest = sorted(mine, key=lambda shingle: (frequency[shingle], shingle))
        rarest = rarest[: len(mine) - math.ceil(threshold * len(mine)) + 1]
        candidates = sorted({other for shingle in rarest for other in index[shingle]})
        for other in candidates:
            theirs = shingles[other]
            similarity = len(mine & theirs) / len(mine | theirs)
            if similarity >= threshold:
                found[place] = (rows[other], similarity)
                break
        else:
            for shingle in rarest:
                index[shingle].append(place)
    return found


def _shingles(tokens: Words) -> set[Words]:
    return set(_ngrams(tokens, SHORT)) or ({tokens} if tokens else set())


# ---------------------------------------------------------------- evaluation sets
def problem_of(question: Row) -> str | None:
    """What makes a generated problem the same, whatever its order; empty for a written question."""
    if question["grader"] == "arithmetic":
        return "+".join(map(str, operands_of(question["question"])))
    if question["grader"] == "countdown":
        problem = json.loads(question["metadata"])
        return f"{sorted(problem['numbers'])} -> {problem['target']}"
    return None


def require_disjoint(questions: Sequence[Row], evaluated: Mapping[str, Sequence[Row]]) -> int:
    """The number of different generated problems, after a check that none is in two splits and
    that no training problem is in an evaluation set, whatever the order of its numbers.

    Raises RuntimeError naming the problem.
    """
    split_of: dict[str, str] = {}
    for question in questions:
        problem = problem_of(question)
        if problem is None:
            continue
        first = split_of.setdefault(problem, question["split"])
        if first != question["split"]:
            raise RuntimeError(f"problem {problem} is in {first} and in {question['split']}")
    for task, rows in evaluated.items():
        for row in rows:
            problem = problem_of(row)
            if problem is not None and split_of.get(problem) == "train":
                raise RuntimeError(f"problem {problem} is in train and in evaluation set {task}")
    return len(split_of)


def find_overlaps(
    training: Sequence[Row], evaluated: Mapping[str, Sequence[Row]]
) -> Iterator[dict[str, Any]]:
    """Rows of the table `eval_overlaps`: a training question and a question of an evaluation set
    that share 13 words in a row, or else 8.

    A question of fewer words is compared as a whole, a generated problem by what it asks for; `n`
    is empty for both. Words that all questions of a set begin or end with (a benchmark's prompt)
    are not part of its questions. `evaluated`: questions by task.
    """
    index = _Index(training)
    for task, questions in evaluated.items():
        texts = _without_prompt([tokens_of(question["question"]) for question in questions])
        for question, tokens in zip(questions, texts, strict=True):
            for question_id, (n, shared) in index.matches(question, tokens).items():
                yield {
                    "question_id": question_id,
                    "task": task,
                    "evaluation_id": question["question_id"],
                    "n": n,
                    "shared": shared,
                }


def _without_prompt(texts: list[Words]) -> list[Words]:
    if len(texts) < 2:
        return texts
    start = _shared_start(texts)
    texts = [text[start:] for text in texts]
    end = _shared_start([text[::-1] for text in texts])
    return [text[: len(text) - end] for text in texts]


def _shared_start(texts: Sequence[Words]) -> int:
    """How many first words all texts have in common."""
    columns = enumerate(zip(*texts, strict=False))
    return next((i for i, words in columns if len(set(words)) > 1), min(map(len, texts)))


def _words(tokens: Sequence[str]) -> list[str]:
    return [token for token in tokens if token[0].isalnum()]


class _Index:
    """Training questions by what they can be recognised by."""

    def __init__(self, training: Sequence[Row]) -> None:
        self.problems: dict[str, list[str]] = defaultdict(list)
        self.whole: dict[Words, list[str]] = defaultdict(list)
        self.ngrams: dict[int, dict[Words, list[str]]] = {}
        texts: dict[str, list[str]] = {}
        for question in training:
            problem, tokens = problem_of(question), tokens_of(question["question"])
            words = _words(tokens)
            if problem is not None:
                self.problems[problem].append(question["question_id"])
            elif len(words) < SHORT:
                self.whole[tokens].append(question["question_id"])
            else:
                texts[question["question_id"]] = words
        common = max(COMMON_LEAST, COMMON_SHARE * len(training))
        for n in (LONG, SHORT):
            places: dict[Words, list[str]] = defaultdict(list)
            for question_id, words in texts.items():
                for ngram in set(_ngrams(words, n)):
                    places[ngram].append(question_id)
            self.ngrams[n] = {k: ids for k, ids in places.items() if len(ids) <= common}

    def matches(self, question: Row, tokens: Words) -> dict[str, tuple[int | None, str]]:
        """question_id of training -> (n, what is shared), the longest n of each."""
        problem = problem_of(question)
        if problem is not None:
            return dict.fromkeys(self.problems.get(problem, ()), (None, problem))
        found: dict[str, tuple[int | None, str]] = {}
        words = _words(tokens)
        for n, places in self.ngrams.items():
            for ngram in _ngrams(words, n):
                for question_id in places.get(ngram, ()):
                    found.setdefault(question_id, (n, " ".join(ngram)))
        for question_id in self.whole.get(tokens, ()):
            found[question_id] = (None, " ".join(tokens))
        return found
