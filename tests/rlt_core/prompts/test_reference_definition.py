"""The reward agrees with the reference implementation's definition: all text read anew, spans found
by their tokens, all logits, one completion at a time (REFERENCE: arXiv 2506.08388's code).

It looks for the tokens of the whole text between two tags, padding included, and gives up the first
or the last of them where the text was cut into others: with Qwen's splitting it always loses the
line break behind an opening tag, which is one token with the tag's `>`."""

import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlt_core.config import REWARD_PRESETS, RewardSpec, ScratchModel
from rlt_core.models import CHATML, new_model, tiny_tokenizer
from rlt_core.prompts.format import PromptFormat, load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.scoring import ContextBuilder, score_contexts
from tests.qwen_tokenizer import qwen_tokenizer

SPEC = REWARD_PRESETS["reference-code"]
TEXTS = (
    "Let us add the two numbers. First 12 and 30 make 42; then 42 and 8 make 50.\n\n"
    "To check, subtract: 50 - 8 = 42, and 42 - 30 = 12. So the answer is \\boxed{50}. "
) * 20


def words_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with GPT-2's splitting, as real models have; tags are plain text to it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [TEXTS],
        trainers.BpeTrainer(
            vocab_size=400,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", extra_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHATML
    return tokenizer


RLT, R1 = load_format("rlt"), load_format("r1")
SCORED = {"score_padding": True}
TOKENIZERS = {
    ("qwen", "rlt"): qwen_tokenizer(),
    ("qwen", "r1"): qwen_tokenizer(),
    ("words", "rlt"): words_tokenizer(),
    ("words", "r1"): words_tokenizer(),
    ("characters", "rlt"): tiny_tokenizer(RLT),
    ("characters", "r1"): tiny_tokenizer(R1),
}
MODELS: dict[int, tuple[PreTrainedModel, PreTrainedModel]] = {}


def two_models(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedModel, PreTrainedModel]:
    if len(tokenizer) not in MODELS:
        shape = {"layers": 1, "width": 16, "heads": 2, "max_positions": 4096}
        MODELS[len(tokenizer)] = tuple(
            new_model(ScratchModel(**shape, seed=seed), tokenizer) for seed in (1, 2)
        )
    return MODELS[len(tokenizer)]


def all_logprobs(model: PreTrainedModel, ids: list[int]) -> np.ndarray:
    """log p of every token but the first."""
    with torch.no_grad():
        logits_TV = model(torch.tensor([ids])).logits[0, :-1].float() / SPEC.temperature
    return torch.log_softmax(logits_TV, -1)[range(len(ids) - 1), ids[1:]].numpy()


def place(sought: list[int], ids: list[int], last: bool = False) -> tuple[int, int] | None:
    """Where the tokens stand in a row; None if the text was cut into other ones."""
    starts = range(len(ids) - len(sought), -1, -1) if last else range(len(ids) - len(sought) + 1)
    found = next((i for i in starts if ids[i : i + len(sought)] == sought), None)
    return None if found is None else (found, found + len(sought))


def found_part(text: str, ids: list[int], tokenizer: PreTrainedTokenizerFast) -> list[int] | None:
    """The text's tokens as they are in a row, at most without the padding in front; None if more of
    them is lost."""
    sought = tokenizer(text, add_special_tokens=False)["input_ids"]
    padding = tokenizer.decode(sought[:1]).strip("\n") == ""
    parts = [sought, sought[1:]] if padding else [sought]
    return next((part for part in parts if place(part, ids)), None)


def reference_reward(
    tokenizer: PreTrainedTokenizerFast, format: PromptFormat, question: str, solution: str,
    completion: str,
) -> float | None:  # fmt: skip
    """None where reading the text again loses a token of it at an edge."""
    f, (student, teacher) = format, two_models(tokenizer)

    def chat(system: str, assistant: str) -> str:
        turns = [("system", system), ("user", question), ("assistant", assistant)]
        return tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in turns], tokenize=False
        )

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    written = f.explanation_open + f.padding + completion
    pattern = f"{re.escape(f.explanation_open)}(.*?){re.escape(f.explanation_close)}"
    match = re.search(pattern, written, re.DOTALL)
    penalty = 0.0
    if not match:
        penalty, written = -1.0, written + f.explanation_close
        match = re.search(pattern, written, re.DOTALL)
    assert match
    thought, answer = match[1], f.padding + solution + f.padding
    solved = f"{f.solution_open}{answer}{f.solution_close}"
    student_ids = encode(
        chat(f.student_system, f"{f.thought_open}{thought}{f.thought_close}{f.separator}{solved}")
    )
    teacher_ids = encode(chat(f.teacher_system, solved + f.separator + written))
    think = found_part(thought, encode(written), tokenizer)
    end = found_part(answer, student_ids, tokenizer)
    if think is None or end is None:
        return None
    spans = (
        place(think, teacher_ids, last=True), place(think, student_ids),
        place(end, student_ids, last=True),
    )  # fmt: skip
    if None in spans:
        return None
    of_teacher, of_student = (
        all_logprobs(teacher, teacher_ids), all_logprobs(student, student_ids)
    )  # fmt: skip
    (t0, t1), (s0, s1), (a0, a1) = (span for span in spans if span)
    k = of_teacher[t0 - 1 : t1 - 1] - of_student[s0 - 1 : s1 - 1]
    s = of_student[a0 - 1 : a1 - 1]
    r_ss, r_kl = s.mean() + 0.01 * s.min(), 3 * k.mean() + 0.03 * k.max()
    return float(r_ss - r_kl + penalty)


def our_reward(
    tokenizer: PreTrainedTokenizerFast, format: PromptFormat, question: str, solution: str,
    explanation: str, closed: bool, spec: RewardSpec = SPEC,
) -> float:  # fmt: skip
    student, teacher = two_models(tokenizer)
    renderer = Renderer(format, tokenizer)
    contexts = ContextBuilder(renderer, renderer).contexts(question, solution, explanation)
    trace = {
        "trace_id": "t", "question_id": "q", "seed": 0, "teacher": "t", "sample": 0,
        "text": explanation, "token_ids": renderer.encode_block(explanation), "closed": closed,
        "finish_reason": None,
    }  # fmt: skip
    (row,) = score_contexts(
        [trace], [contexts], student="s", load_student=lambda: nullcontext(student),
        load_teacher=lambda: nullcontext(teacher), spec=spec, max_tokens=4096,
        tokens_per_batch=4096,
    )  # fmt: skip
    return float(row["reward"])


words = ["First", "12", "and", "30", "make", "42;", "so", "x²", "é", "check:", "\n\nThen"]
# Of two words: a single one may also stand inside a tag, where the reference then finds it.
# Texts of data have no white space around them.
sentence = st.lists(st.sampled_from(words), min_size=2, max_size=12).map(" ".join).map(str.strip)


@pytest.mark.parametrize("family", ["rlt", "r1"])
@pytest.mark.parametrize(
    "kind, padded", [("qwen", True), ("words", True), ("characters", True), ("qwen", False)]
)
@given(question=sentence, solution=sentence, explanation=sentence, closed=st.booleans())
def test_agrees_with_the_reference_where_it_loses_no_token(
    kind: str, padded: bool, family: str, question: str, solution: str, explanation: str,
    closed: bool,
) -> None:  # fmt: skip
    """Also as shipped, without `score_padding`: with Qwen's tokenizer no token is padding alone
    where the texts end with a full stop, as most do."""
    format, tokenizer = load_format(family), TOKENIZERS[kind, family]
    if padded:
        format = format.model_copy(update=SCORED)
    else:
        solution, explanation = f"{solution}.", f"{explanation}."
    completion = explanation + format.padding + (format.explanation_close if closed else "")
    expected = reference_reward(tokenizer, format, question, solution, completion)
    assume(expected is not None)
    got = our_reward(tokenizer, format, question, solution, explanation, closed)
    assert got == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("family", ["rlt", "r1"])
@pytest.mark.parametrize("kind", ["qwen", "words", "characters"])
def test_the_reference_loses_no_token_of_plain_text(kind: str, family: str) -> None:
    """So that the tests above are about something."""
    format, tokenizer = load_format(family), TOKENIZERS[kind, family]
    for end in ("", "."):
        written = f"First 12 and 30 make 42{end}{format.padding}{format.explanation_close}"
        assert reference_reward(tokenizer, format, "Add 12 and 30", "So 42.", written) is not None


@pytest.mark.parametrize("family", ["rlt", "r1"])
def test_the_line_break_behind_an_opening_tag_is_lost_with_qwens_splitting(family: str) -> None:
    format, tokenizer = load_format(family), TOKENIZERS["qwen", family]
    ids = tokenizer(format.thought_open + format.padding + "First 12")["input_ids"]
    thought = f"{format.padding}First 12"
    assert tokenizer.decode(found_part(thought, ids, tokenizer)) == "First 12"


def test_an_unclosed_explanation_is_scored_as_if_closed_and_pays() -> None:
    tokenizer = TOKENIZERS["words", "rlt"]
    closed, unclosed = (
        our_reward(tokenizer, RLT, "Add 12 and 30", "42", "First 12", which)
        for which in (True, False)
    )
    assert unclosed == pytest.approx(closed - 1, abs=1e-9)
