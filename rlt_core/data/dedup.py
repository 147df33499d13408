"""Questions that occur twice: near-duplicates in the training data, overlaps with evaluation sets.

Questions are compared by the n-grams of their words, generated problems by what they ask for.
"""

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa

from rlt_core.data.generators.arithmetic import SUM, operands_of
from rlt_core.data.rawrow import RawRow, normalised, question_id
from rlt_core.progress import Progress

Row = Mapping[str, Any]
Words = tuple[str, ...]

SHORT, LONG = 8, 13
"""Lengths of the n-grams in words, as in s1 (arXiv 2501.19393) and GPT-3 (2005.14165)."""
TOKEN = re.compile(r'\w+|[^\w\s.,;:?"$\\]')
BLOCK = 1000
"""Number of questions whose words Python holds at once."""
LIMITS = {"memory_limit": "96MB", "threads": "1"}
"""DuckDB uses the disk above this memory. 400,000 rows of 33 words took 0.5 KB a row."""
COMMON_SHARE, COMMON_LEAST = 0.01, 10
"""An n-gram in more than this fraction of the training questions, and in more than this number, is
common wording ("find the sum of all positive integers"), not a sign of a copied question."""
SILENT = Progress()

TABLE = "create table {} (place bigint, words varchar[], whole varchar[])"
NEAR = """
with shingles as materialized (
    select distinct place, hash(words[i : i + $n - 1]) as shingle
    from (select *, unnest(range(1, greatest(len(words) - $n, 0) + 2)) as i from training)
    where words is not null
),
counted as (
    select *, count(*) over (partition by shingle) as often,
        count(*) over (partition by place) as size
    from shingles
),
rare as materialized (
    select * from counted
    qualify often > 1 and row_number() over (partition by place order by often, shingle)
        <= size - ceil($threshold * size) + 1
),
pairs as (
    select distinct a.place, b.place as other, a.size + b.size as total
    from rare a join rare b using (shingle)
    where b.place < a.place and least(a.size, b.size) >= $threshold * greatest(a.size, b.size)
),
compared as (
    select p.place, p.other, count(*) / (any_value(p.total) - count(*)) as similarity
    from pairs p join shingles x on x.place = p.place
        join shingles y on y.place = p.other and y.shingle = x.shingle
    group by p.place, p.other
)
from compared where similarity >= $threshold order by place, other
"""
"""Pairs of questions whose sets of shingles have a Jaccard index >= the threshold. Such sets share
one of the rarest |A| - ceil(t |A|) + 1 shingles of each (prefix filter: Chaudhuri et al., ICDE
2006), so that common wording costs nothing."""
SHARED = """
with grams as (
    select place, i, hash(words[i : i + $n - 1]) as gram
    from (select *, unnest(range(1, len(words) - $n + 2)) as i from asked)
),
rare as (
    select distinct place, gram
    from (
        select place, hash(words[i : i + $n - 1]) as gram
        from (select *, unnest(range(1, len(words) - $n + 2)) as i from training)
    ) where gram in (select gram from grams)
    qualify count(*) over (partition by gram) <= $common
)
select grams.place, rare.place as training, min(i) as start from grams join rare using (gram)
group by all order by grams.place, start, training
"""
"""Pairs of evaluation and training questions that share n words, and the first of these."""
SAME = """
select asked.place, training.place as training from asked join training using (whole)
order by asked.place, training
"""


@contextmanager
def _database() -> Iterator[duckdb.DuckDBPyConnection]:
    with (
        tempfile.TemporaryDirectory(prefix="rlt-dedup-") as spill,
        duckdb.connect(config={**LIMITS, "temp_directory": spill}) as connection,
    ):
        for table in ("training", "asked"):
            connection.execute(TABLE.format(table))
        yield connection


def _insert(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    start: int,
    compared: Iterable[tuple[Words | None, Words | None]],
) -> None:
    """Add questions, the first of which has the place `start`: the words of each to compare n-grams
    of, and what is compared as a whole."""
    words, whole = zip(*compared, strict=True)
    block = pa.table(
        {"place": range(start, start + len(words)), "words": words, "whole": whole},
        pa.schema(
            [("place", pa.int64()), *((n, pa.list_(pa.string())) for n in ("words", "whole"))]
        ),
    )
    connection.from_arrow(block).insert_into(table)


def _in_blocks(rows: Sequence[RawRow], progress: Progress) -> Iterator[tuple[int, list[RawRow]]]:
    starts = range(0, len(rows), BLOCK)
    for start in progress.over(starts, len(starts)):
        yield start, list(rows[start : start + BLOCK])


def tokens_of(question: str) -> Words:
    """Return words and signs in normal form, without punctuation but with operators."""
    return tuple(TOKEN.findall(normalised(question)))


def near_duplicates(
    rows: Sequence[RawRow], threshold: float, progress: Progress = SILENT
) -> dict[int, tuple[RawRow, float]]:
    """Map the index of a near-duplicate to the earlier kept row and their similarity.

    Similarity is the exact Jaccard index of the sets of 8-token shingles; a question with fewer
    tokens is one shingle. Generated problems, which have a grader, differ by construction and are
    not compared.
    """
    found: dict[int, tuple[RawRow, float]] = {}
    with _database() as connection:
        for start, block in _in_blocks(rows, progress):
            tokens = (None if row.grader else tokens_of(row.question) or None for row in block)
            _insert(connection, "training", start, ((words, None) for words in tokens))
        pairs = connection.execute(NEAR, {"n": SHORT, "threshold": threshold})
        while pair := pairs.fetchone():
            place, other, similarity = pair
            if place not in found and other not in found:
                found[place] = rows[other], similarity
    return found


# ---------------------------------------------------------------- evaluation sets
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
    asked = [
        (task, question, _compared(_problem(question), tokens))
        for task, questions in evaluated.items()
        for question, tokens in zip(questions, _without_prompt(questions), strict=True)
    ]
    found: list[dict[int, tuple[int | None, Words]]] = [{} for _ in asked]
    with _database() as connection:
        if asked:
            _insert(connection, "asked", 0, (compared for _, _, compared in asked))
        for start, block in _in_blocks(training, progress):
            problems = (problem_of(row.grader, row.question, row.metadata) for row in block)
            tokens = (tokens_of(row.question) for row in block)
            _insert(connection, "training", start, map(_compared, problems, tokens))
        common = max(COMMON_LEAST, COMMON_SHARE * len(training))
        for n in (LONG, SHORT):
            for number, place, at in connection.execute(
                SHARED, {"n": n, "common": common}
            ).fetchall():
                words = asked[number][2][0] or ()
                found[number].setdefault(place, (n, words[at - 1 : at - 1 + n]))
        for number, place in connection.execute(SAME).fetchall():
            found[number][place] = None, asked[number][2][1] or ()
    for (task, question, _), places in zip(asked, found, strict=True):
        for place, (shared, words) in places.items():
            yield {
                "question_id": question_id(training[place].question),
                "task": task,
                "evaluation_id": question["question_id"],
                "n": shared,
                "shared": " ".join(words),
            }


def _compared(problem: str | None, tokens: Words) -> tuple[Words | None, Words | None]:
    """Return the words to compare n-grams of, or what is compared as a whole: a generated problem
    or a short question."""
    if problem is not None:
        return None, (problem,)
    words = tuple(token for token in tokens if token[0].isalnum())
    return (words, None) if len(words) >= SHORT else (None, tokens)


def _without_prompt(questions: Sequence[Row]) -> list[Words]:
    """Return the tokens of questions without those with which all of them begin or end."""
    texts = [tokens_of(question["question"]) for question in questions]
    if len(texts) > 1:
        start = _shared_start(texts)
        texts = [tokens[start:] for tokens in texts]
        end = _shared_start([tokens[::-1] for tokens in texts])
        texts = [tokens[: len(tokens) - end] for tokens in texts]
    return texts


def _shared_start(texts: Sequence[Words]) -> int:
    """Return how many first words all texts have in common."""
    first, last = min(texts), max(texts)
    pairs = enumerate(zip(first, last, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))
