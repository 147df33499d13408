"""A tokenizer that splits text as Qwen2's does: a tag's `>` and the line breaks behind it are one
token, and so are a full stop and those behind it."""

from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from rlt_core.models import CHATML
from rlt_core.prompts.format import load_format, shipped

SENTENCES = (
    "Let us add the two numbers. First 12 and 30 make 42; then 42 and 8 make 50.\n\n"
    "To check, subtract: 50 - 8 = 42, and 42 - 30 = 12.\nSo the answer is \\boxed{50}.\n\n"
    "First and second\n\nFirst and third\n\n"
)


@cache
def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over Qwen2's splits, trained on sentences between the tags of all formats."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    formats = [load_format(name) for name in shipped()]
    texts = [tag + f.padding + SENTENCES for f in formats for tag in f.tags] * 20
    trainer = trainers.BpeTrainer(
        vocab_size=480, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer
