"""A small base model trained from scratch on generated documents."""

import tempfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from rlt_core.config import ScratchModel, SFTConfig
from rlt_core.data.generators.arithmetic import base_documents
from rlt_core.models import new_model, save_model, tiny_tokenizer
from rlt_core.prompts.format import PromptFormat
from rlt_core.prompts.renderer import Renderer
from rlt_core.training.context import TrainingContext
from rlt_core.training.sft import train_sft

DISTINCT_DOCUMENTS = 12_000
"""A training that needs more repeats them."""


def train_base(
    config: ScratchModel,
    held_out: Collection[str],
    format: PromptFormat,
    context: TrainingContext,
) -> dict[str, float]:
    """Write `model/`: a tiny Llama that knows a little arithmetic, and the format's shape.

    `held_out`: questions that it must not see. With `config.steps` 0 the weights stay random.
    Raises Stopped.
    """
    tokenizer = tiny_tokenizer(format, config.max_positions)
    model = new_model(config, tokenizer)
    parameters = model.num_parameters()
    if config.steps == 0:
        save_model(model, tokenizer, context.out / "model")
        return {"parameters": parameters}
    count = min(DISTINCT_DOCUMENTS, config.steps * config.batch_size)
    documents = list(base_documents(count, config.seed, Renderer(format, tokenizer), held_out))
    sft = SFTConfig(
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup_ratio=0.05,
        beta2=0.95,
        max_tokens=config.max_positions,
    )
    alone = context.resources.model_copy(update={"sharding": "none"})  # one process trains it
    context = replace(context, seed=config.seed, resources=alone)
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, tokenizer, Path(folder))
        metrics = train_sft(Path(folder), documents, sft, context)
    return {**metrics, "parameters": parameters}
