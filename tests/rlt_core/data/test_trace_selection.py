"""Sets of traces: whole, repeatable, the same in any order of rows, and as long as they claim."""

from collections import Counter, defaultdict
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_core.config import RankedSet, TraceOrder
from rlt_core.data.trace_selection import (
    best_fitting,
    columns,
    match_tokens,
    rank_traces,
    ranks_of_set,
)
from rlt_core.scoring import assign_ranks
from rlt_core.sql.schemas import SCORES

ORDERS: tuple[TraceOrder, ...] = get_args(TraceOrder)
SETS: tuple[RankedSet, ...] = get_args(RankedSet)
Row = dict[str, Any]
few = st.sampled_from([-2.0, -1.0, 0.0, 0.5])  # few values, many ties


@st.composite
def score_tables(draw: st.DrawFn) -> list[Row]:
    """Rows of `scores`: questions with traces, a few of them too long, values that may be null."""
    rows = []
    for question in range(draw(st.integers(1, 5))):
        for sample in range(draw(st.integers(1, 5))):
            scored = draw(st.integers(0, 5)) > 0
            row: Row = dict.fromkeys(SCORES.names) | {
                "trace_id": f"q{question}-{sample}", "question_id": f"q{question}", "seed": 0,
                "teacher": "t", "student": "s", "sample": sample,
                "status": "scored" if scored else "too_long",
                "think_tokens": draw(st.integers(0, 12)),
                "correct": draw(st.sampled_from([True, False, None])),
            }  # fmt: skip
            if scored:
                row |= {name: draw(few) for name in ("reward", "r_ss", "r_kl")}
                row |= {n: draw(st.none() | few) for n in ("think_mean", "rank_surprisal")}
            rows.append(row)
    return assign_ranks(rows)


@given(score_tables(), st.sampled_from(ORDERS), st.integers(0, 3), st.randoms())
def test_ranks_are_permutations_of_each_questions_scored_traces_in_any_order_of_rows(
    rows: list[Row], order: TraceOrder, seed: int, random: Any
) -> None:
    ranks = rank_traces(rows, order, seed)
    scored = [row for row in rows if row["status"] == "scored"]
    assert ranks.keys() == {row["trace_id"] for row in scored}
    by_question = defaultdict(list)
    for row in scored:
        by_question[row["question_id"]].append(ranks[row["trace_id"]])
    for found in by_question.values():
        assert sorted(found) == list(range(1, len(found) + 1))
    needed = [{name: row[name] for name in columns(order)} for row in rows]
    random.shuffle(needed)
    assert rank_traces(needed, order, seed) == ranks


BETTER = {
    "reward": ("reward", 1), "r_ss": ("r_ss", 1), "r_kl": ("r_kl", -1),
    "likelihood": ("think_mean", 1), "rank_surprisal": ("rank_surprisal", -1),
    "length": ("think_tokens", -1), "correct": ("correct", 1),
}  # fmt: skip


@given(score_tables(), st.sampled_from(list(BETTER)), st.integers(0, 3))
def test_a_better_value_ranks_better_null_is_last_and_ties_go_to_the_lower_sample(
    rows: list[Row], order: TraceOrder, seed: int
) -> None:
    column, sign = BETTER[order]
    ranks = rank_traces(rows, order, seed)
    ranked = [row for row in rows if row["trace_id"] in ranks]
    for one in ranked:
        for other in ranked:
            if one["question_id"] != other["question_id"]:
                continue
            a, b = one[column], other[column]
            first = ranks[one["trace_id"]] < ranks[other["trace_id"]]
            if a != b:
                better = b is None or (a is not None and sign * a > sign * b)
                assert first == better
            elif order != "correct" and one is not other:
                assert first == (one["sample"] < other["sample"])


def fifty(correct: bool | None = True) -> list[Row]:
    """Fifty questions with four traces each that nothing tells apart."""
    return assign_ranks(
        [
            dict.fromkeys(SCORES.names) | {
                "trace_id": f"q{question:02}-{sample}", "question_id": f"q{question:02}",
                "sample": sample, "status": "scored", "reward": 0.0, "correct": correct,
                "think_tokens": 5 + (7 * question + 3 * sample) % 11,
            }
            for question in range(50) for sample in range(4)
        ]
    )  # fmt: skip


@pytest.mark.parametrize("order", ["random", "correct"])
def test_what_is_drawn_differs_between_seeds_and_orders_and_favours_no_sample(
    order: TraceOrder,
) -> None:
    rows = fifty()
    sets = [rank_traces(rows, order, seed) for seed in range(8)]
    assert sets[0] == rank_traces(rows, order, 0) and sets[0] != rank_traces(rows, "reward", 0)
    assert rank_traces(rows, "random", 0) != rank_traces(rows, "correct", 0)
    for one in range(8):
        for other in range(one):
            same = sum(sets[one][name] == sets[other][name] for name in sets[one])
            assert 20 < same < 80  # 50 of 200 by chance
    best = Counter(name[-1] for ranks in sets for name, rank in ranks.items() if rank == 1)
    assert all(60 < best[sample] < 140 for sample in "0123")  # 100 each


@given(score_tables(), st.sampled_from(ORDERS), st.integers(0, 3), st.data())
def test_the_best_trace_that_fits_is_taken_and_the_rest_is_counted(
    rows: list[Row], order: TraceOrder, seed: int, data: st.DataObject
) -> None:
    ranks = rank_traces(rows, order, seed)
    fit = data.draw(st.sets(st.sampled_from([row["trace_id"] for row in rows])))
    chosen = best_fitting(rows, ranks, fit)
    assert chosen.traces <= fit & ranks.keys()
    left_out = second = 0
    for question in {row["question_id"] for row in rows}:
        own = [row["trace_id"] for row in rows if row["question_id"] == question]
        fitting = [name for name in own if name in fit and name in ranks]
        taken = chosen.traces & set(own)
        if not fitting:
            left_out += 1
            assert not taken
        else:
            assert taken == {min(fitting, key=ranks.__getitem__)}
            second += ranks[next(iter(taken))] > 1
    assert (chosen.no_trace_fits, chosen.not_first_choice) == (left_out, second)


@given(score_tables(), st.integers(0, 3), st.randoms())
def test_token_matched_sets_are_equal_up_to_a_trace(
    rows: list[Row], seed: int, random: Any
) -> None:
    ranks = rank_traces(rows, "reward", seed)
    tokens = {row["trace_id"]: row["think_tokens"] for row in rows}
    kept = match_tokens(rows, ranks, tokens, seed)
    assert kept.items() <= ranks.items()

    def totals(sets: dict[str, int]) -> list[int]:
        return [
            sum(tokens[name] for name in sets if sets[name] == rank)
            for rank in sorted(set(ranks.values()))
        ]

    least = min(totals(ranks), default=0)
    longest = max(tokens.values())
    for rank, (before, after) in enumerate(zip(totals(ranks), totals(kept), strict=True), 1):
        assert after <= least
        assert after == before or after > least - longest
        if before == least:
            assert [n for n in kept if kept[n] == rank] == [n for n in ranks if ranks[n] == rank]
    shuffled = random.sample(rows, len(rows))
    assert match_tokens(shuffled, ranks, tokens, seed) == kept


def test_questions_leave_token_matched_sets_in_one_order_that_the_seed_gives() -> None:
    rows = fifty()
    ranks = rank_traces(rows, "reward", 0)
    tokens = {row["trace_id"]: 10 * ranks[row["trace_id"]] for row in rows}
    left: dict[int, set[str]] = defaultdict(set)
    for name in ranks.keys() - match_tokens(rows, ranks, tokens, 0).keys():
        left[ranks[name]].add(name.partition("-")[0])
    assert left.keys() == {2, 3, 4}
    assert left[2] < left[3] < left[4] and len(left[2]) == 25
    other = ranks.keys() - match_tokens(rows, ranks, tokens, 1).keys()
    assert {name.partition("-")[0] for name in other if ranks[name] == 2} != left[2]


def test_a_trace_without_tokens_of_its_own_weighs_nothing() -> None:
    rows = fifty()
    ranks = rank_traces(rows, "reward", 0)
    tokens = {name: 1 for name, rank in ranks.items() if rank < 4}
    kept = match_tokens(rows, ranks, tokens, 0)
    assert set(kept.values()) == {4} and Counter(kept.values())[4] == 50


@given(score_tables(), st.sampled_from(SETS), st.integers(0, 3))
def test_a_set_is_found_from_its_columns_alone(
    rows: list[Row], ranked_by: RankedSet, seed: int
) -> None:
    needed = [{name: row[name] for name in columns(ranked_by)} for row in rows]
    ranks = ranks_of_set(needed, ranked_by, seed)
    assert ranks == ranks_of_set(rows, ranked_by, seed)
    whole = rank_traces(rows, "reward" if ranked_by == "token-matched" else ranked_by, seed)
    assert ranks.items() <= whole.items()
    assert ranked_by == "token-matched" or ranks == whole
