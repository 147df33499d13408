"""Student and teacher with different tokenizers: log-probs of the spans of text that both share."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from rlt_core.config import RewardSpec, ScratchModel
from rlt_core.errors import UserError
from rlt_core.models import new_model, tiny_tokenizer
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.reward.formula import reward_parts
from rlt_core.scoring import ContextBuilder, Contexts, score_contexts, selected_logprobs
from rlt_core.scoring.alignment import SharedSpans, encoded_ends, sampled_ends
from tests.merging_tokenizer import merging_tokenizer
from tests.qwen_tokenizer import qwen_tokenizer

RLT, TINY = load_format("rlt"), load_format("tiny")
SCORED = RLT.model_copy(update={"score_padding": True})
CHARACTERS = Renderer(TINY, tiny_tokenizer(TINY))
MERGING = Renderer(TINY, merging_tokenizer([("o", "n"), ("on", "e"), ("1", "2"), ("Ġ", "t")]))
QWEN, QWEN_SCORED = (Renderer(format, qwen_tokenizer()) for format in (RLT, SCORED))
OTHER, OTHER_SCORED = (Renderer(format, merging_tokenizer()) for format in (RLT, SCORED))
PAIRS = [(CHARACTERS, MERGING), (MERGING, CHARACTERS), (QWEN, OTHER), (OTHER, QWEN)]
SCORED_PAIRS = [(QWEN_SCORED, OTHER_SCORED), (OTHER_SCORED, QWEN_SCORED)]
pieces = ["one", " two", "12", "é", "😀", "\n\n", ". ", " ", "\t", "x²", "<think>", "한"]
text = st.lists(st.one_of(st.sampled_from(pieces), st.text(max_size=3)), max_size=9).map("".join)
SPEC = RewardSpec(alignment="text")


def think_tokens(contexts: Contexts) -> tuple[int, int]:
    assert contexts.teacher
    spans = contexts.student.think, contexts.teacher.think
    return spans[0].end - spans[0].start, spans[1].end - spans[1].start


@pytest.mark.parametrize("student, teacher", PAIRS + SCORED_PAIRS)
@given(explanation=text)
def test_every_token_is_in_one_span_and_spans_hold_the_same_text(
    student: Renderer, teacher: Renderer, explanation: str
) -> None:
    contexts = ContextBuilder(student, teacher, "text").contexts("q", "s", explanation)
    shared, (of_student, of_teacher) = contexts.shared, think_tokens(contexts)
    if shared is None:
        assert not explanation.strip("\n") and think_tokens(contexts) == (0, 0)
        return
    assert (len(shared.student), len(shared.teacher)) == (of_student, of_teacher)
    everyone = list(range(len(shared.ends)))
    for places in (shared.student, shared.teacher):
        assert sorted(set(places.tolist())) == everyone and sorted(places) == places.tolist()
    assert shared.ends[-1] == len(explanation)
    values = np.arange(of_student, dtype=float)
    assert shared.summed(values, shared.student).sum() == values.sum()
    # A span ends where a token of either ends, and nowhere else in between.
    for renderer in (student, teacher):
        ids = renderer.encode_block(explanation)
        ends = encoded_ends(renderer, explanation)
        for end in set(shared.ends.tolist()) - {len(explanation)}:
            last = int(np.flatnonzero(ends == end)[-1])
            assert renderer.tokenizer.decode(ids[: last + 1]).lstrip() == explanation[:end].lstrip()


@pytest.mark.parametrize("renderer", [CHARACTERS, MERGING, QWEN, OTHER])
@given(explanation=text)
def test_ends_of_sampled_tokens_are_those_of_encoded_ones(
    renderer: Renderer, explanation: str
) -> None:
    if "\ufffd" in renderer.tokenizer.decode(renderer.encode(explanation)):
        return  # a character that this tokenizer does not have
    ids = renderer.encode_block(explanation)
    found = sampled_ends(renderer, ids, len(explanation))
    np.testing.assert_array_equal(
        np.minimum(found, len(explanation)),
        np.minimum(encoded_ends(renderer, explanation), len(explanation)),
    )


def model(renderer: Renderer, seed: int) -> PreTrainedModel:
    size = ScratchModel(layers=1, width=32, heads=2, seed=seed)
    return new_model(size, renderer.tokenizer)


def trace(renderer: Renderer, explanation: str, ids: list[int] | None = None) -> dict[str, Any]:
    return {
        "trace_id": "q-0", "question_id": "q", "seed": 0, "teacher": "t", "sample": 0,
        "text": explanation, "token_ids": ids or renderer.encode_block(explanation),
        "closed": True, "finish_reason": "stop",
    }  # fmt: skip


def scored(
    builder: ContextBuilder, explanation: str, spec: RewardSpec, ids: list[int] | None = None
) -> dict[str, Any]:
    contexts = builder.contexts("1+1?", "two, 2", explanation, ids)
    teacher = builder.teacher
    (row,) = score_contexts(
        [trace(builder.student, explanation, ids)], [contexts], student="s",
        load_student=lambda: nullcontext(model(builder.student, 1)),
        load_teacher=(lambda: nullcontext(model(teacher, 2))) if teacher else None,
        spec=spec, max_tokens=4096, tokens_per_batch=4096,
    )  # fmt: skip
    return row


@pytest.mark.parametrize("renderer", [CHARACTERS, QWEN_SCORED])
@settings(max_examples=8)
@given(explanation=text)
def test_equal_tokenizers_give_the_reward_of_token_ids(
    renderer: Renderer, explanation: str
) -> None:
    by_ids = scored(ContextBuilder(renderer, renderer), explanation, RewardSpec())
    as_text = ContextBuilder(renderer, renderer, "text")
    names = ("reward", "r_ss", "r_kl", "kl_max", "think_mean", "rank_surprisal")
    as_ids = scored(as_text, explanation, SPEC)
    assert [as_ids[name] for name in names] == [by_ids[name] for name in names]
    # Also over shared spans, where each token is a span: none ends inside a character.
    as_text.one_vocabulary = False
    merged = scored(as_text, explanation, SPEC)
    contexts = as_text.contexts("1+1?", "two, 2", explanation)
    if contexts.shared and len(contexts.shared.ends) == think_tokens(contexts)[0]:
        for name in names:
            assert merged[name] == pytest.approx(by_ids[name], abs=1e-6)


@pytest.mark.parametrize("student, teacher", PAIRS)
def test_the_reward_of_two_tokenizers_is_that_of_its_definition(
    student: Renderer, teacher: Renderer
) -> None:
    explanation = "one and two é12 make. three"
    row = scored(ContextBuilder(student, teacher, "text"), explanation, SPEC)
    in_student = student.student_context("1+1?", student.encode_block(explanation), "two, 2")
    in_teacher = teacher.teacher_context("1+1?", "two, 2", teacher.encode_block(explanation))
    assert in_student.solution is not None

    def logprobs(renderer: Renderer, seed: int, context: Any, *spans: Any) -> list[Any]:
        (found,) = selected_logprobs(model(renderer, seed), [context.ids], [list(spans)], 0.7, 999)
        return found

    solution, think = logprobs(student, 1, in_student, in_student.solution, in_student.think)
    (by_teacher,) = logprobs(teacher, 2, in_teacher, in_teacher.think)
    ends = [encoded_ends(renderer, explanation) for renderer in (student, teacher)]
    shared = SharedSpans.of(*(np.minimum(each, len(explanation)) for each in ends))
    merged = shared.summed(think, shared.student), shared.summed(by_teacher, shared.teacher)
    expected = reward_parts(solution, *merged, closed=True, spec=SPEC)
    assert row["reward"] == pytest.approx(expected.reward, abs=1e-5)
    assert row["student_think_logprobs"] == pytest.approx(merged[0], abs=1e-5)
    assert sum(row["teacher_think_logprobs"]) == pytest.approx(float(sum(by_teacher)), abs=1e-4)
    assert row["think_span_ends"][-1] == len(explanation)
    assert row["think_tokens"] == len(student.encode_block(explanation))
    assert row["think_mean"] == pytest.approx(float(np.mean(think)), abs=1e-5)


def test_sampled_ids_stay_the_teachers() -> None:
    """Also where its tokenizer would write the text with other tokens."""
    ids = [MERGING.encode(one)[0] for one in "one"]
    assert ids != MERGING.encode_block("one")
    contexts = ContextBuilder(CHARACTERS, MERGING, "text").contexts("q", "s", "one", ids)
    assert contexts.teacher and contexts.shared
    assert contexts.teacher.ids[slice(*contexts.teacher.think)] == ids
    assert contexts.shared.ends.tolist() == [1, 2, 3]


def test_without_a_teachers_model_nothing_takes_the_place_of_its_part() -> None:
    row = scored(ContextBuilder(CHARACTERS, None), "one and two", RewardSpec())
    with_teacher = scored(ContextBuilder(CHARACTERS, CHARACTERS), "one and two", RewardSpec())
    assert row["reward"] == row["r_ss"] == with_teacher["r_ss"] and row["rank"] == 1
    assert all(row[name] is None for name in ("r_kl", "kl_mean", "kl_max"))
    assert row["teacher_think_logprobs"] is None and row["status"] == "scored"
    assert row["think_mean"] == with_teacher["think_mean"]


def test_different_vocabularies_are_refused_unless_text_travels() -> None:
    with pytest.raises(UserError, match="alignment"):
        ContextBuilder(CHARACTERS, MERGING)
    with pytest.raises(ValueError, match="alignment=ids"):
        RewardSpec(alignment="text", kl="full")
