"""Thinking is as long as the budget says, whatever the model writes and however it is tokenised."""

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_core.config import BudgetForcing
from rlt_core.evaluation.budget_forcing import Draft, Forcer
from rlt_core.prompts.renderer import Renderer
from tests.rlt_core.evaluation.renderers import CHARACTERS, MERGING, PROMPTERS, RLT, spelled

PIECES = ["12", ". ", "<", ">", "\n\n", "é", "😀", "Wa", "{open}", "{close}", "{answer}", "{end}"]
phase = st.tuples(
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=10).map("".join),
    st.booleans(),
)
"""What a model writes if it is not stopped, and whether it then ends its turn."""
phases = st.lists(phase, min_size=1, max_size=8)
budgets = st.builds(
    BudgetForcing,
    max_thinking_tokens=st.integers(1, 12) | st.none(),
    continuations=st.integers(1, 3),
    continuation=st.sampled_from(["Wait", "<", "é, "]),
)


def forced(
    forcer: Forcer, writes: Iterable[tuple[Sequence[int], bool]], context: int = 10_000
) -> tuple[Draft, list[Draft]]:
    """A finished draft, and it after each phase. A model whose turn does not end writes spaces for
    ever, one with nothing left to write ends it; an engine whose context is full ends with
    `length`."""
    seen: list[Draft] = []
    draft, left = forcer.first(), iter(writes)
    end, space = forcer.renderer.end_of_turn, forcer.renderer.encode(" ")
    while draft.max_new_tokens:
        assert len(seen) < 20
        tokens, ends = next(left, ([], True))
        endless = [*tokens, end] if ends else [*tokens, *space * draft.max_new_tokens]
        sampled = endless[: max(0, min(draft.max_new_tokens, context - len(draft.ids)))]
        draft = forcer.after(draft, sampled, "stop" if sampled[-1:] == [end] else "length")
        seen.append(draft)
    return draft, seen


def undisturbed(forcer: Forcer, ids: Sequence[int]) -> Draft:
    """The draft of a model that writes these ids, whatever was forced on it; then spaces."""
    draft, space = forcer.first(), forcer.renderer.encode(" ")
    while draft.max_new_tokens:
        left = ids[len(draft.ids) :] or space * draft.max_new_tokens
        sampled = left[: draft.max_new_tokens]
        stopped = sampled[-1] == forcer.renderer.end_of_turn
        draft = forcer.after(draft, sampled, "stop" if stopped else "length")
    return draft


# ---------------------------------------------------------------- what a phase leads to
@PROMPTERS
@given(
    opening=st.sampled_from(["", "{open}"]), phases=phases, budget=budgets,
    max_tokens=st.integers(1, 120), context=st.integers(10, 200),
)  # fmt: skip
def test_no_limit_is_exceeded_whatever_is_written(
    renderer: Renderer, opening: str, phases: list[tuple[str, bool]], budget: BudgetForcing,
    max_tokens: int, context: int,
) -> None:  # fmt: skip
    (first, ended), *rest = phases
    texts = [(opening + first, ended), *rest]
    writes = [(spelled(renderer, text), ends) for text, ends in texts]
    draft, _ = forced(Forcer(renderer, budget, max_tokens), writes, context)
    assert 0 < len(draft.ids) <= max_tokens
    assert draft.continuations <= budget.continuations
    stopped = draft.ids[-1] == renderer.end_of_turn
    assert draft.finish_reason == ("stop" if stopped else "length")
    assert all(token not in renderer.stop_ids for token in draft.ids[:-1])
    thinking = renderer.thinking_of(draft.ids)
    if thinking and budget.max_thinking_tokens:
        over = len(thinking.ids) - thinking.start - budget.max_thinking_tokens
        # At most a forced closing tag that `max_tokens` broke off.
        broken = thinking.ids[len(thinking.ids) - over :] if over > 0 else []
        forced_end = renderer.to_solution(thinking.ids[: len(thinking.ids) - over])
        assert broken == forced_end[: len(broken)]
        assert not broken or len(draft.ids) == max_tokens


@PROMPTERS
@given(texts=st.lists(st.text(max_size=20), min_size=4, max_size=4), ends=st.booleans())
def test_each_end_of_thinking_is_taken_back_until_none_is_left(
    renderer: Renderer, texts: list[str], ends: bool
) -> None:
    f = renderer.format
    if any(tag in text for tag in f.tags for text in texts):
        return
    if any(text.endswith("\n") for text in texts):  # may be the padding of the end taken back
        return
    forcer = Forcer(renderer, BudgetForcing(continuations=3, continuation="Wait"), 10_000)
    closing = "" if ends else "{close}{answer}4{end}"  # the turn may end without the tag
    writes = [(spelled(renderer, text + closing), True) for text in texts[:3]]
    writes[0] = (spelled(renderer, "{open}" + texts[0] + closing), True)
    writes.append((spelled(renderer, texts[3] + "{close}{answer}4{end}"), True))
    draft, seen = forced(forcer, writes)
    assert [each.continuations for each in seen] == [1, 2, 3, 3]
    answer = f"{f.thought_close}{f.solution_open}4{f.solution_close}"
    assert renderer.decode(draft.ids) == f.thought_open + "Wait".join(texts) + answer
    assert draft.finish_reason == "stop"


def test_a_token_that_holds_the_closing_tags_first_character_is_split() -> None:
    ids = spelled(MERGING, "{open}12{close}")
    assert "12<" in map(MERGING.tokenizer.decode, ids)
    draft, _ = forced(Forcer(MERGING, BudgetForcing(continuations=1), 1000), [(ids, True)])
    assert MERGING.decode(draft.ids) == f"{RLT.thought_open}12Wait"


def test_a_token_that_holds_the_opening_tags_end_counts_as_thinking() -> None:
    ids = spelled(MERGING, "{open}\n" + "a" * 50)
    assert ">\n" in map(MERGING.tokenizer.decode, ids)
    for limit, kept in ((1, "\n"), (2, "\na")):
        forcer = Forcer(MERGING, BudgetForcing(max_thinking_tokens=limit), 1000)
        text = MERGING.decode(undisturbed(forcer, ids).ids)
        padding = RLT.padding.removeprefix("\n" if kept.endswith("\n") else "")
        assert text.startswith(f"{RLT.thought_open}{kept}{padding}{RLT.thought_close}")


@PROMPTERS
@pytest.mark.parametrize("limit", [1, 2, 7, 30])
@pytest.mark.parametrize("before", ["", "Sure: "])
def test_long_thinking_is_cut_and_answered(renderer: Renderer, limit: int, before: str) -> None:
    f = renderer.format
    budget = BudgetForcing(max_thinking_tokens=limit, continuations=2)
    writes = spelled(renderer, before + "{open}" + f.padding + "abcd" * 40)
    forcer = Forcer(renderer, budget, 1000)
    assert forcer.first().max_new_tokens < len(writes)  # no need to draw all of it
    answer = (renderer.encode("42" + f.solution_close), True)
    draft, _ = forced(forcer, [(writes, False), answer])
    thinking = renderer.thinking_of(draft.ids)
    assert thinking and thinking.closed
    assert thinking.ids == writes[: thinking.start + limit]
    read = renderer.split_answer(renderer.decode(draft.ids))
    assert (read.solution, read.formatted) == ("42", not before)
    assert draft.finish_reason == "stop" and draft.continuations == 0


@PROMPTERS
@pytest.mark.parametrize("written", [9, 10, 11])
@pytest.mark.parametrize("closes", [True, False])
def test_the_limit_is_the_last_length_that_is_left_alone(
    renderer: Renderer, written: int, closes: bool
) -> None:
    tag = renderer.encode(renderer.format.thought_open)
    end = spelled(renderer, "{close}{answer}4{end}") if closes else []
    ids = [*tag, *renderer.encode("a" * written), *end, renderer.end_of_turn]
    draft = undisturbed(Forcer(renderer, BudgetForcing(max_thinking_tokens=10), 100), ids)
    if written < 10 or (written == 10 and closes):
        assert (draft.ids, draft.finish_reason) == (ids, "stop")
    else:
        cut = [*ids[: len(tag) + 10], *renderer.to_solution(ids[: len(tag) + 10])]
        assert draft.ids[: len(cut)] == cut and draft.answering


@PROMPTERS
def test_an_end_stands_if_the_limits_leave_no_room_to_think_on(renderer: Renderer) -> None:
    thought = renderer.encode("a" * 10)
    tag = renderer.encode(renderer.format.thought_open)
    more = renderer.encode("Wait, ") * 10  # longer than what it replaces
    ids = [*tag, *thought, *spelled(renderer, "{close}{answer}4{end}")]
    for limit, max_tokens, continued in (
        (10 + len(more), 1000, 0), (11 + len(more), 1000, 1),
        (None, len(tag) + 10 + len(more) + 1, 1), (None, len(tag) + 10 + len(more), 0),
    ):  # fmt: skip
        budget = BudgetForcing(
            max_thinking_tokens=limit, continuations=5, continuation="Wait, " * 10
        )
        _, seen = forced(Forcer(renderer, budget, max_tokens), [(ids, True), ([], True)])
        assert seen[0].continuations == continued


@PROMPTERS
@given(text=st.text(max_size=200), ends=st.booleans(), budget=budgets)
def test_without_a_thought_nothing_is_forced(
    renderer: Renderer, text: str, ends: bool, budget: BudgetForcing
) -> None:
    if renderer.format.thought_open in text:
        return
    ids = renderer.encode(text)
    written = [*ids, *([renderer.end_of_turn] if ends else renderer.encode(" ") * 300)]
    assert undisturbed(Forcer(renderer, budget, 300), written).ids == written[:300]


def test_more_than_the_room_is_as_if_the_engine_had_left_off_there() -> None:
    forcer = Forcer(CHARACTERS, BudgetForcing(max_thinking_tokens=5), 100)
    first = forcer.first()
    for text in ("{open}abcdefghi" * 9, "{open}abc{close}{answer}4{end}" + "a" * 50, "a" * 99):
        ids = spelled(CHARACTERS, text)
        assert len(ids) > first.max_new_tokens
        whole = forcer.after(first, ids, "stop")
        assert whole == forcer.after(first, ids[: first.max_new_tokens], "length")


def test_a_full_context_ends_the_completion() -> None:
    """An engine that stops short of the room has no place for anything more."""
    forcer = Forcer(CHARACTERS, BudgetForcing(max_thinking_tokens=5, continuations=1), 100)
    first = forcer.first()
    for text, kept in (("{open}ab", "{open}ab"), ("ab", "ab"), ("{open}abcdefg", "{open}abcde")):
        draft = forcer.after(first, spelled(CHARACTERS, text), "length")
        assert draft == Draft(spelled(CHARACTERS, kept), max_new_tokens=0, finish_reason="length")
