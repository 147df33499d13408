"""What training shares with evaluation sets: generated problems, and words in a row."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rlt_core.data.generators.arithmetic import operands_of
from rlt_core.data.rawrow import RawRow, question_id
from rlt_core.data.shingles import (
    BLOCK,
    LONG,
    SHORT,
    SILENT,
    Hashes,
    Words,
    ngram_hashes,
    tokens_of,
)
from rlt_core.progress import Progress

Row = Mapping[str, Any]

COMMON_SHARE, COMMON_LEAST = 0.01, 10
"""An n-gram in more than this share of the training questions, and in more than so many, is their
wording ("find the sum of all positive integers"), not a sign of a copied question."""


def problem_of(grader: str | None, question: str, metadata: str | None) -> str | None:
    """What makes a generated problem the same, whatever its order; empty for a written question."""
    if grader == "arithmetic":
        return "+".join(map(str, operands_of(question)))
    if grader == "countdown":
        problem = json.loads(metadata or "")
        return f"{sorted(problem['numbers'])} -> {problem['target']}"
    return None


def _problem(row: Row) -> str | None:
    return problem_of(row["grader"], row["question"], row["metadata"])


def require_disjoint(questions: Iterable[Row], evaluated: Mapping[str, Sequence[Row]]) -> int:
    """The number of different generated problems, after a check that none is in two splits and
    that no training problem is in an evaluation set, whatever the order of its numbers.

    Raises RuntimeError naming the problem.
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
    """Rows of the table `eval_overlaps`: a training question and a question of an evaluation set
    that share 13 words in a row, or else 8.

    A question of fewer words is compared as a whole, a generated problem by what it asks for; `n`
    is empty for both. Words that all questions of a set begin or end with (a benchmark's prompt)
    are not part of its questions. `evaluated`: questions by task.
    """
    around = {task: _prompt_around(questions) for task, questions in evaluated.items()}

    def asked() -> Iterator[tuple[str, Row, Words]]:
        for task, questions in evaluated.items():
            before, after = around[task]
            for question in questions:
                tokens = tokens_of(question["question"])
                yield task, question, tokens[before : len(tokens) - after]

    index = _Index(((question, tokens) for _, question, tokens in asked()), len(training))
    for start in range(0, len(training), BLOCK):
        progress.check()
        progress.report(start, len(training), {})
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
    """How many first and last words all questions have in common."""
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
    """Places of training questions, by what they share with the questions of evaluation sets."""

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
        """Take in the training questions from place `start` on."""
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
        """Place of a training question -> (n, what is shared), the longest n of each."""
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
    """Training questions that have an n-gram of an evaluation set, unless more than `common` do."""

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
        """(where it starts, places of training questions) of each n-gram that is shared."""
        hashes, _ = ngram_hashes([words], self._n)
        for start, spot in enumerate(np.searchsorted(self._known, hashes).tolist()):
            if spot in self._places and self._counts[spot] <= self._common:
                yield start, self._places[spot]
