"""Diagnostics detect the failures that they are named after, for any text, and nothing else."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_core.reward.diagnostics import (
    CLIPPED_ALARM,
    COMPRESSION_ALARM,
    COPIED_ALARM,
    NGRAM_TOKENS,
    SHORTEST_BYTES,
    diagnose,
    explanation_alarms,
)

ids = st.lists(st.integers(0, 5), max_size=60)
long_ids = st.lists(st.integers(0, 5), min_size=NGRAM_TOKENS, max_size=60)
PROSE = (
    "To add the two numbers, start with their units: seven and eight make fifteen, so write five "
    "and carry one. The tens are three and four, with the carried one that is eight. Put together, "
    "the sum is eighty-five, and subtracting the first number gives the second one back."
)


# ---------------------------------------------------------------- any input
@given(text=st.text(max_size=400), think=ids, solution=ids)
def test_every_text_has_values_in_their_bounds(
    text: str, think: list[int], solution: list[int]
) -> None:
    found = diagnose(text, think, solution)
    assert (found.copied is None) == (len(solution) < NGRAM_TOKENS)
    assert found.copied is None or 0 <= found.copied <= 1
    assert (found.compression is None) == (len(text.encode()) < SHORTEST_BYTES)
    # zlib adds some bytes to what it cannot compress, and cannot gain more than 1032 times
    assert found.compression is None or 0.9 < found.compression < 1033
    assert found.doubt >= 0
    assert think or found.doubt == 0


def test_an_empty_explanation_has_no_doubt_and_copies_nothing() -> None:
    found = diagnose("", [], list(range(20)))
    assert (found.copied, found.compression, found.doubt) == (0.0, None, 0.0)


# ---------------------------------------------------------------- copied
@given(solution=long_ids, before=ids, after=ids)
def test_a_solution_in_the_explanation_is_wholly_copied(
    solution: list[int], before: list[int], after: list[int]
) -> None:
    assert diagnose("", [*before, *solution, *after], solution).copied == 1


@given(solution=long_ids, think=ids, more=ids)
def test_writing_on_never_copies_less(
    solution: list[int], think: list[int], more: list[int]
) -> None:
    share, longer = (diagnose("", written, solution).copied for written in (think, [*think, *more]))
    assert share is not None and longer is not None and longer >= share


@given(solution=long_ids, think=ids)
def test_copied_is_the_share_of_runs_found_by_search(solution: list[int], think: list[int]) -> None:
    def runs(tokens: list[int]) -> set[str]:
        text = "".join(map(str, tokens))
        return {text[i : i + NGRAM_TOKENS] for i in range(len(text) - NGRAM_TOKENS + 1)}

    wanted = runs(solution)
    found = sum(run in "".join(map(str, think)) for run in wanted) / len(wanted)
    assert diagnose("", think, solution).copied == found


def test_parts_of_a_solution_count_as_parts() -> None:
    solution = list(range(100, 100 + NGRAM_TOKENS + 3))  # four runs
    assert diagnose("", [1, 2, *solution[:-2], 3], solution).copied == 0.5
    assert diagnose("", solution[: NGRAM_TOKENS - 1], solution).copied == 0


# ---------------------------------------------------------------- repetition
@given(
    text=st.text(st.characters(codec="utf-8"), min_size=SHORTEST_BYTES, max_size=800),
    times=st.integers(2, 6),
)
def test_repetition_raises_compression(text: str, times: int) -> None:
    once, often = (diagnose(each, [1], []).compression for each in (text, text * times))
    assert once is not None and often is not None and often > once


def test_prose_is_below_the_alarm_and_a_loop_above() -> None:
    assert 1 < (diagnose(PROSE, [1], []).compression or 0) < COMPRESSION_ALARM / 2
    loop = "So the answer is 42. " * 40
    assert (diagnose(loop, [1], []).compression or 0) > COMPRESSION_ALARM
    noise = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz0123456789+-*/= ", k=4000)
    assert (diagnose("".join(noise), [1], []).compression or 0) < 2


# ---------------------------------------------------------------- doubt
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Wait, that is wrong. Hmm. Hmmmm.", 3),
        ("MAYBE; perhaps\nactually — alternatively?", 4),
        ("let me check this. Let  me\ndouble-check that. Let me recheck.", 3),
        ("waiter awaits a button, buttermilk, actuality, hummus, Wait_1", 0),
        ("wait...but", 2),
        ("not sure, I think", 2),
        ("wäit, bùt, waitß", 0),
        ("", 0),
    ],
)
def test_whole_words_of_doubt_in_any_case(text: str, words: int) -> None:
    assert diagnose(text, [1] * 500, []).doubt == pytest.approx(2 * words)


@given(text=st.text(max_size=200), tokens=st.integers(1, 300), times=st.integers(1, 5))
def test_doubt_is_a_rate(text: str, tokens: int, times: int) -> None:
    once = diagnose(f"{text} . ", [1] * tokens, []).doubt
    often = diagnose(f"{text} . " * times, [1] * tokens * times, []).doubt
    assert often == pytest.approx(once)


@given(text=st.text(max_size=200))
def test_a_word_of_doubt_more_counts(text: str) -> None:
    more = diagnose(f"{text} . perhaps", [1], []).doubt
    assert more == diagnose(f"{text} . ", [1], []).doubt + 1000


# ---------------------------------------------------------------- alarms
def test_alarms_are_above_their_thresholds_and_never_without_a_value() -> None:
    names = ("alarm_copied", "alarm_repetition", "alarm_over_length")
    limits = (COPIED_ALARM, COMPRESSION_ALARM, CLIPPED_ALARM)
    assert explanation_alarms(None, None, None) == dict.fromkeys(names, 0.0)
    assert explanation_alarms(*limits) == dict.fromkeys(names, 0.0)
    for i, name in enumerate(names):
        values = [None, None, None]
        values[i] = limits[i] + 0.01
        assert explanation_alarms(*values) == dict.fromkeys(names, 0.0) | {name: 1.0}
