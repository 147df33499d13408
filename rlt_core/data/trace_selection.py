"""Select a student's traces: sets by rank, and their controls.

Nothing here depends on the order of rows: random numbers derive from the seed and an id.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from rlt_core.config import RankedSet, TraceOrder, TraceSelectionConfig

Item = TypeVar("Item")
Rows = Sequence[Mapping[str, Any]]

VALUES: dict[RankedSet, tuple[str, int]] = {
    "r_ss": ("r_ss", -1),
    "r_kl": ("r_kl", 1),
    "likelihood": ("think_mean", -1),
    "rank_surprisal": ("rank_surprisal", 1),
    "length": ("think_tokens", 1),
    "correct": ("correct", -1),
}
"""Column of `scores` for each order, and its sign: the smallest signed value is the best."""
RANDOM_TIES: tuple[TraceOrder, ...] = ("correct", "random")
"""Orders whose ties are broken at random; the others prefer the lower sample."""


@dataclass(frozen=True)
class Fitting:
    """The best fitting trace of each question that has one."""

    traces: frozenset[str]
    not_first_choice: int
    """Number of questions whose best-ranked trace does not fit."""
    no_trace_fits: int
    """Number of questions without a fitting trace, which are left out."""


def columns(ranked_by: RankedSet) -> list[str]:
    """Return the columns of `scores` that `ranks_of_set` needs."""
    extra = ["rank"] if ranked_by in ("reward", "token-matched") else []
    extra += ["think_tokens"] if ranked_by == "token-matched" else []
    extra += [VALUES[ranked_by][0]] if ranked_by in VALUES else []
    return ["trace_id", "question_id", "sample", "status", *extra]


def rank_traces(scores: Rows, order: TraceOrder, seed: int) -> dict[str, int]:
    """Return the rank of each scored trace within its question, 1 being the best.

    Traces without a value come last. The order `reward` uses the stored ranks.
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
    """Return the sort key of a trace within its question."""
    tie = random_number(order, seed, row["trace_id"]) if order in RANDOM_TIES else row["sample"]
    if order not in VALUES:
        return (tie,)
    column, sign = VALUES[order]
    value = row[column]
    return (1, 0, tie) if value is None else (0, sign * value, tie)


def random_number(purpose: str, seed: int, name: str) -> int:
    """Return a random number below 2**64 that purpose, seed and name determine."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def best_fitting(scores: Rows, ranks: Mapping[str, int], fit: Collection[str]) -> Fitting:
    """Return the best-ranked trace in `fit` for each question in `scores`."""
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


def unusable(
    trace: Mapping[str, Any],
    score: Mapping[str, Any],
    row_tokens: int,
    longest: int,
    selection: TraceSelectionConfig,
) -> tuple[str, str] | None:
    """Return why a trace cannot be kept, and a detail; None: it can be."""
    if trace["finish_reason"] == "length":
        return "cut", f"it has no end within {trace['completion_tokens']} tokens"
    if score["reward"] is None or row_tokens > longest:
        return "too_long", f"a row of {row_tokens} tokens; the student has room for {longest}"
    if selection.only_correct and score["correct"] is None:
        return "ungradable", "whether it arrives at the solution cannot be told"
    if selection.only_correct and not score["correct"]:
        return "wrong", "it does not arrive at the solution"
    return None


def match_tokens(
    scores: Rows, ranks: Mapping[str, int], tokens: Mapping[str, int], seed: int
) -> dict[str, int]:
    """Cut every rank's set to the tokens of the smallest; return the ranks of the remaining traces.

    `tokens`: tokens of each trace, 0 if it is missing. Questions are removed in an order that
    depends on the seed and not on the rank, until the set has at most as many tokens as the
    smallest complete one: the sets then differ by less than the last removed trace.
    """
    totals: dict[int, int] = defaultdict(int)
    for trace, rank in ranks.items():
        totals[rank] += tokens.get(trace, 0)
    least = min(totals.values(), default=0)
    kept = dict(ranks)

    def removed_at(row: Mapping[str, Any]) -> tuple[int, str]:
        return random_number("token-matched", seed, row["question_id"]), row["trace_id"]

    for row in sorted(scores, key=removed_at):
        trace = row["trace_id"]
        if trace in kept and totals[kept[trace]] > least:
            totals[kept.pop(trace)] -= tokens.get(trace, 0)
    return kept


def order_of(ranked_by: RankedSet) -> TraceOrder:
    """Return the order by which a set's traces are ranked."""
    return "reward" if ranked_by == "token-matched" else ranked_by


def ranks_of_set(scores: Rows, ranked_by: RankedSet, seed: int) -> dict[str, int]:
    """Return the rank of each trace in a set of the rank ablation, from the scores alone: tokens
    are those of the tokenizer that scored."""
    ranks = rank_traces(scores, order_of(ranked_by), seed)
    if ranked_by != "token-matched":
        return ranks
    tokens = {row["trace_id"]: row["think_tokens"] for row in scores}
    return match_tokens(scores, ranks, tokens, seed)


def choose(items: Sequence[Item], count: int | None, seed: int) -> list[Item]:
    """Return `count` random items in their order; all if `count` is None or not smaller."""
    if count is None or count >= len(items):
        return list(items)
    places = np.random.default_rng(seed).permutation(len(items))[:count]
    return [items[place] for place in sorted(places)]
