"""Renderers whose tokenizers cut text into characters, or merge over the edges of tags."""

import pytest

from rlt_core.models import tiny_tokenizer
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from tests.merging_tokenizer import merging_tokenizer

TINY, RLT, R1 = load_format("tiny"), load_format("rlt"), load_format("r1")
# Over the edges of tags: what stands before them, inside them, and the line's end behind them.
MERGES = [
    (">", "Ċ"), ("2", "<"), (".", "<"), ("Ċ", "Ċ"), ("<", "|"), ("|", ">"),
    ("1", "2<"), ("e", "n"), ("en", "d"), ("_", "o"), ("_o", "f"), ("<|", "end"), ("W", "a"),
]  # fmt: skip


CHARACTERS = Renderer(TINY, tiny_tokenizer(TINY))
MERGING = Renderer(RLT, merging_tokenizer(MERGES))
MERGING_R1 = Renderer(R1, merging_tokenizer(MERGES))
PROMPTERS = pytest.mark.parametrize("renderer", [CHARACTERS, MERGING, MERGING_R1])


def spelled(renderer: Renderer, text: str) -> list[int]:
    """A text with names of tags, tokenised as one string: merges may cross the tags' edges."""
    f = renderer.format
    names = {"open": f.thought_open, "close": f.thought_close, "end": f.solution_close,
             "answer": f.solution_open}  # fmt: skip
    for name, tag in names.items():
        text = text.replace(f"{{{name}}}", tag)
    return renderer.encode(text)
