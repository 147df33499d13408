"""Renderers whose tokenizers cut text into characters, or merge over the edges of tags."""

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from rlt_core.models import CHATML, tiny_tokenizer
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer

TINY, RLT, R1 = load_format("tiny"), load_format("rlt"), load_format("r1")
# Over the edges of tags: what stands before them, inside them, and the line's end behind them.
MERGES = [
    (">", "Ċ"), ("2", "<"), (".", "<"), ("Ċ", "Ċ"), ("<", "|"), ("|", ">"),
    ("1", "2<"), ("e", "n"), ("en", "d"), ("_", "o"), ("_o", "f"), ("<|", "end"), ("W", "a"),
]  # fmt: skip


def merging_tokenizer() -> PreTrainedTokenizerFast:
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
    backend = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = CHATML
    return tokenizer


CHARACTERS = Renderer(TINY, tiny_tokenizer(TINY))
MERGING = Renderer(RLT, merging_tokenizer())
MERGING_R1 = Renderer(R1, merging_tokenizer())
PROMPTERS = pytest.mark.parametrize("renderer", [CHARACTERS, MERGING, MERGING_R1])


def spelled(renderer: Renderer, text: str) -> list[int]:
    """A text with names of tags, tokenised as one string: merges may cross the tags' edges."""
    f = renderer.format
    names = {"open": f.thought_open, "close": f.thought_close, "end": f.solution_close,
             "answer": f.solution_open}  # fmt: skip
    for name, tag in names.items():
        text = text.replace(f"{{{name}}}", tag)
    return renderer.encode(text)
