"""Chat templates of published models: system turns, prefilled thoughts, dates, ends of turns."""

import json
from datetime import date
from pathlib import Path

import pytest

from rlt_core.errors import UserError
from rlt_core.models import CHATML, load_tokenizer, tiny_tokenizer
from rlt_core.prompts.format import PromptFormat, load_format
from rlt_core.prompts.renderer import Renderer
from tests.merging_tokenizer import merging_tokenizer

TINY = load_format("tiny")
RLT = load_format("rlt")
MERGING = Renderer(RLT, merging_tokenizer())


def test_the_template_names_the_end_of_turn() -> None:
    turn_end, eos = MERGING.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert MERGING.end_of_turn == turn_end != eos
    assert set(MERGING.stop_ids) == {turn_end, eos}


def with_template(format: PromptFormat, template: str) -> Renderer:
    tokenizer = tiny_tokenizer(format)
    tokenizer.chat_template = template
    return Renderer(format, tokenizer)


TURNS = (
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REFUSES = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
)
DROPS = "{% for m in messages if m['role'] != 'system' %}" + TURNS


@pytest.mark.parametrize("template", [REFUSES, DROPS])
def test_without_system_turns_the_system_prompt_leads_the_user_turn(template: str) -> None:
    expected = with_template(RLT.model_copy(update={"student_system": ""}), CHATML)
    renderer = with_template(RLT, template)
    assert renderer.system_in_user_turn and not expected.system_in_user_turn
    told = f"{RLT.student_system}\n\n1+2"
    assert renderer.student_prompt("1+2") == expected.student_prompt(told)


@pytest.mark.parametrize("prefill", ["<think>\n", "<think>", "\n<think>\n\n"])
def test_a_thought_that_the_template_opens_is_folded_into_the_format(prefill: str) -> None:
    r1 = load_format("r1")
    opening = CHATML.replace("assistant\n'", f"assistant\n{prefill}'")
    assert opening != CHATML
    plain, folded = with_template(r1, CHATML), with_template(r1, opening)
    row = folded.student_sft_row("1+2", folded.encode("t"), "3")
    text = folded.tokenizer.decode(row.input_ids)
    assert text.count("<think>") == 1 and "assistant\n<think>\nt\n</think>" in text.replace(
        "\n\n", "\n"
    )
    assert row.input_ids[-9:] == plain.student_sft_row("1+2", plain.encode("t"), "3").input_ids[-9:]
    assert "<think>" not in folded.tokenizer.decode(folded.teacher_prompt("1+2", "3"))
    with pytest.raises(UserError, match=r"begins the assistant's turn with '<think>'.*<\|begin_of"):
        with_template(RLT, opening)


def test_an_empty_thought_that_the_template_writes_is_refused() -> None:
    empty = CHATML.replace("assistant\n'", "assistant\n<think>\n\n</think>\n\n'")
    for format in (load_format("r1"), RLT):
        with pytest.raises(UserError, match="begins the assistant's turn with"):
            with_template(format, empty)


def test_a_template_that_asks_for_the_date_gets_the_formats() -> None:
    dated = "{{ strftime_now('%d %b %Y') }}" + CHATML
    renderer = with_template(TINY, dated)
    assert renderer.tokenizer.decode(renderer.student_prompt("")).startswith("26 Jul 2024<")
    other = TINY.model_copy(update={"template_date": date(2025, 1, 2)})
    assert with_template(other, dated).student_prompt("")[:2] == renderer.encode("02")
    assert other.model_dump_json() != TINY.model_dump_json()


@pytest.mark.parametrize(
    "written, then, eos, expected",
    [
        ("<|im_end|>\n", "", [], "<|im_end|>"),
        (" <|im_end|>", "", [], "<|im_end|>"),
        ("<|im_end|>", "{{ eos_token }}", ["<|endoftext|>"], "<|im_end|>"),
        ("<|im_start|><|im_end|>", "", ["<|im_end|>"], "<|im_end|>"),
        ("", "", [], "<|im_start|>"),
        ("\n\n", "", [], "<|im_start|>"),
    ],
)
def test_the_end_of_turn_is_what_the_template_writes_and_every_eos_stops(
    written: str, then: str, eos: list[str], expected: str, tmp_path: Path
) -> None:
    tokenizer = merging_tokenizer()
    tokenizer.chat_template = CHATML.replace("<|im_end|>' + '\n'", f"{written}'") + (
        "{% if not add_generation_prompt %}" + then + "{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer.convert_tokens_to_ids(eos)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids or None}))
    renderer = Renderer(RLT, load_tokenizer(tmp_path))
    assert renderer.end_of_turn == tokenizer.convert_tokens_to_ids(expected)
    assert set(renderer.stop_ids) == {renderer.end_of_turn, tokenizer.eos_token_id, *ids}


def test_a_template_that_repeats_or_hides_a_message_is_refused() -> None:
    with pytest.raises(UserError, match="exactly once"):
        with_template(TINY, "{{ messages[0]['content'] }}{{ messages[0]['content'] }}")
    with pytest.raises(UserError, match="exactly once"):
        with_template(TINY, "nothing")
