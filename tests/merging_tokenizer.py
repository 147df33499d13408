"""A byte-level tokenizer whose merges cross the edges of tags."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from rlt_core.models import CHATML

# Byte-level merges: over the edges of tags, inside them, and between a line's end and the next.
MERGES = [
    ("2", "<"), (".", "<"), ("Ċ", "Ċ"), (">", "Ċ"), ("©", "<"), ("<", "|"), ("|", ">"),
    ("1", "2<"), ("e", "n"), ("en", "d"), ("_", "o"), ("_o", "f"), ("<|", "end"),
]  # fmt: skip


def merging_tokenizer(merges: Sequence[tuple[str, str]] = MERGES) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose merges cross the edges of tags, which are plain text to it."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    backend = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = CHATML
    return tokenizer
