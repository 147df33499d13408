"""Tests of an imported model: what would fail or give wrong results later is refused at once.

Shapes: B sequences, T positions, D width, V words.
"""

from __future__ import annotations

import tempfile
from datetime import date
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlt_core.chat_templates import BadTemplate, Chats, try_template
from rlt_core.errors import UserError
from rlt_core.prompts.format import PromptFormat
from rlt_core.scoring.logprobs import decoder_and_head, logit_transform

TOKENS = 8
"""Tokens of the test's sequence."""
LARGEST_LOGIT = 100.0
TOLERANCE = 0.01
"""Of the largest logit: some models transform them in bfloat16."""
DAY: date = PromptFormat.model_fields["template_date"].default


def try_tokenizer(tokenizer: PreTrainedTokenizerFast, name: str) -> Chats:
    """Return the chat template's rendering of each chat. Raises UserError for a tokenizer without a
    template or an end-of-sequence token, and for a template that exceeds its limits or does not
    render the same each time."""
    if tokenizer.chat_template is None:
        raise UserError(f"{name}: its tokenizer has no chat template; use an instruct model")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name}: its tokenizer has no end-of-sequence token")
    try:
        template = tokenizer.get_chat_template()
        return try_template(template, tokenizer.special_tokens_map, DAY)
    except (BadTemplate, ValueError) as error:
        raise UserError(f"{name}: its chat template cannot be used: {error}") from None


def try_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, chats: Chats, name: str
) -> None:
    """Raise UserError unless the model satisfies the assumptions of scoring and training, by passes
    over a few tokens."""
    decoder, head = decoder_and_head(model)
    if not isinstance(head, nn.Linear):
        raise UserError(f"{name}: {type(model).__name__} has no linear output embedding")
    if getattr(model.config.get_text_config(), "max_position_embeddings", None) is None:
        raise UserError(f"{name}: its config names no max_position_embeddings, so no limit applies")
    embedding: Any = model.get_input_embeddings()
    rows: int = min(embedding.weight.shape[0], head.out_features)
    check_rows(rows, tokenizer, chats, name)
    ids = torch.arange(TOKENS)[None] % rows
    other = ids.clone()  # as long, so that bfloat16 rounds the same
    other[:, -1] = TOKENS % rows
    with torch.no_grad():
        hidden_BTD = decoder(input_ids=ids.to(model.device)).last_hidden_state
        again_BTD = decoder(input_ids=other.to(model.device)).last_hidden_state
        _check_logits(model, head, ids, hidden_BTD, name)
    earlier = hidden_BTD[:, :-1].float(), again_BTD[:, :-1].float()
    if not torch.allclose(*earlier, rtol=0.01, atol=0.01):
        raise UserError(f"{name}: its attention is not causal: a token changes those before it")
    _try_saving(model, tokenizer, name)


def check_rows(rows: int, tokenizer: PreTrainedTokenizerFast, chats: Chats, name: str) -> None:
    """Raise UserError if a token that can occur has no row. (Gemma 3's smallest model has a control
    token for images beyond its embedding, which never occurs.)"""
    added = tokenizer.added_tokens_decoder
    named = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    shown = "".join(filter(None, (chats.prompt, chats.system, chats.answered, chats.continued)))
    beyond = [
        token
        for token, index in tokenizer.get_vocab().items()
        if index >= rows
        and (index in named or index not in added or not added[index].special or token in shown)
    ]
    if beyond:
        raise UserError(
            f"{name}: its embeddings have {rows} rows, but the tokenizer has {len(tokenizer)} "
            f"tokens, {sorted(beyond)[0]!r} among those beyond; resize_token_embeddings, train, "
            "and save it again"
        )


def _check_logits(
    model: PreTrainedModel, head: nn.Linear, ids: Tensor, hidden_BTD: Tensor, name: str
) -> None:
    """Raise UserError unless `transform(head(hidden))`, as in scoring, gives the model's logits.
    The head's are made as large as logits get, so that a cap on them shows."""
    factor = LARGEST_LOGIT / head(hidden_BTD).abs().max()
    hook = head.register_forward_hook(lambda module, args, output: output * factor)
    try:
        theirs_BTV = model(input_ids=ids.to(model.device)).logits.float()
        ours_BTV = logit_transform(model)(head(hidden_BTD).float())
    finally:
        hook.remove()
    if ours_BTV.shape == theirs_BTV.shape:
        largest = theirs_BTV.abs().max()
        if (ours_BTV - theirs_BTV).abs().max() < TOLERANCE * largest:
            return
    raise UserError(
        f"{name}: {type(model).__name__} changes hidden states or logits around its output "
        "embedding in a way that scoring does not know; its log-probs would be wrong"
    )


def _try_saving(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Save everything except the weights, as a checkpoint does."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            cast(Any, model).config.save_pretrained(folder)
            cast(Any, model).generation_config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            again = type(tokenizer).from_pretrained(Path(folder), local_files_only=True)
        except Exception as error:  # any of these would end a training at its checkpoint
            raise UserError(f"{name}: cannot be saved: {error}") from None
        if again.get_vocab() != tokenizer.get_vocab():
            raise UserError(f"{name}: its tokenizer comes back from a save with other ids")
