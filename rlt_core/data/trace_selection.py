"""Which of a question's scored traces a student learns from: sets by rank, and their controls.

Nothing here depends on the order of rows: what is drawn, is drawn from the seed and an id.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from rlt_core.config import RankedSet, TraceOrder

Item = TypeVar("Item")
Rows = Sequence[Mapping[str, Any]]

VALUES: dict[TraceOrder, tuple[str, int]] = {
    "r_ss": ("r_ss", -1),
    "r_kl": ("r_kl", 1),
    "likelihood": ("think_mean", -1),
    "rank_surprisal": ("rank_surprisal", 1),
    "length": ("think_tokens", 1),
    "correct": ("correct", -1),
}
"""Column of `scores` that an order compares, and its sign: the least signed value is the best."""
DRAWN: tuple[TraceOrder, ...] = ("correct", "random")
"""Orders whose ties are broken by a draw; those of the others, by the lower sample."""


@dataclass(frozen=True)
class Fitting:
    """The best trace that fits, of each question that has one."""

    traces: frozenset[str]
    not_first_choice: int
    """Questions whose best-ranked trace does not fit."""
    no_trace_fits: int
    """Questions left out."""


def columns(order: TraceOrder) -> list[str]:
    """The columns of `scores` that ranking by an order reads."""
    common = ["trace_id", "question_id", "sample", "status"]
    if order == "reward":
        return [*common, "rank"]
    return [*common, VALUES[order][0]] if order in VALUES else common


def rank_traces(scores: Rows, order: TraceOrder, seed: int) -> dict[str, int]:
    """Rank of each scored trace within its question, 1 the best; `reward`: the stored one.

    Traces without a value come last. A trace that was not scored has no rank.
    """
    scored = [row for row in scores if row["status"] == "scored"]
    if order == "reward":
        return {row["trace_id"]: row["rank"] for row in scored}
    groups: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for row in scored:
        groups[row["question_id"]].append((*_place(row, order, seed), row["trace_id"]))
    return {
        place[-1]: rank
        for group in groups.values()
        for rank, place in enumerate(sorted(group), start=1)
    }


def _place(row: Mapping[str, Any], order: TraceOrder, seed: int) -> tuple[float, ...]:
    """What a question's traces are sorted by."""
    tie = draw(order, seed, row["trace_id"]) if order in DRAWN else row["sample"]
    if order not in VALUES:
        return (tie,)
    column, sign = VALUES[order]
    value = row[column]
    return (1, 0, tie) if value is None else (0, sign * value, tie)


def draw(purpose: str, seed: int, name: str) -> int:
    """A number that a name draws for a purpose, below 2**64."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def best_fitting(scores: Rows, ranks: Mapping[str, int], fit: Collection[str]) -> Fitting:
    """Of each question in `scores` the best-ranked trace among those in `fit`."""
    best: dict[str, tuple[int, str]] = {}
    first: dict[str, int] = {}
    for row in scores:
        trace, question = row["trace_id"], row["question_id"]
        if trace not in ranks:
            continue
        first[question] = min(first.get(question, ranks[trace]), ranks[trace])
        if trace in fit:
            own = (ranks[trace], trace)
            best[question] = min(best.get(question, own), own)
    return Fitting(
        traces=frozenset(trace for _, trace in best.values()),
        not_first_choice=sum(rank > first[question] for question, (rank, _) in best.items()),
        no_trace_fits=len({row["question_id"] for row in scores} - best.keys()),
    )


def match_tokens(
    scores: Rows, ranks: Mapping[str, int], tokens: Mapping[str, int], seed: int
) -> dict[str, int]:
    """The ranks of the traces that stay when every rank's set is cut to the tokens of the smallest.

    `tokens`: of each trace; one that is not named has none. Questions leave a set in an order that
    the seed gives and that is the same for every rank, until the set has at most as many tokens as
    the smallest has whole: the sets then differ by less than the last trace that left.
    """
    totals: dict[int, int] = defaultdict(int)
    for trace, rank in ranks.items():
        totals[rank] += tokens.get(trace, 0)
    least = min(totals.values(), default=0)
    kept = dict(ranks)
    for row in sorted(scores, key=lambda row: _leaving(row, seed)):
        trace = row["trace_id"]
        if trace in kept and totals[kept[trace]] > least:
            totals[kept.pop(trace)] -= tokens.get(trace, 0)
    return kept


def _leaving(row: Mapping[str, Any], seed: int) -> tuple[int, str]:
    return draw("token-matched", seed, row["question_id"]), row["trace_id"]


def order_of(ranked_by: RankedSet) -> TraceOrder:
    """What the traces of a set are ranked by."""
    return "reward" if ranked_by == "token-matched" else ranked_by


def ranks_of_set(scores: Rows, ranked_by: RankedSet, seed: int) -> dict[str, int]:
    """Rank of each trace in a set of the rank ablation, by the scores alone: tokens are those of
    the tokenizer that scored."""
    ranks = rank_traces(scores, order_of(ranked_by), seed)
    if ranked_by != "token-matched":
        return ranks
    tokens = {row["trace_id"]: row["think_tokens"] for row in scores}
    return match_tokens(scores, ranks, tokens, seed)


def columns_of_set(ranked_by: RankedSet) -> list[str]:
    """The columns of `scores` that `ranks_of_set` reads."""
    extra = ["think_tokens"] if ranked_by == "token-matched" else []
    return [*columns(order_of(ranked_by)), *extra]


def choose(items: Sequence[Item], count: int | None, seed: int) -> list[Item]:
    """`count` of the items, in their order; all if `count` is empty or not smaller."""
    if count is None or count >= len(items):
        return list(items)
    places = np.random.default_rng(seed).permutation(len(items))[:count]
    return [items[place] for place in sorted(places)]
