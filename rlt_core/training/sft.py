"""Supervised fine-tuning on token ids, with TRL's SFTTrainer."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from datasets import Dataset
from transformers import PreTrainedModel
from trl import SFTConfig as TRLConfig
from trl import SFTTrainer

from rlt_core.config import SFTConfig
from rlt_core.errors import UserError
from rlt_core.models import load_tokenizer
from rlt_core.processes import join
from rlt_core.prompts.renderer import Row
from rlt_core.training.checkpoint import ResumableTrainer
from rlt_core.training.context import TrainingContext
from rlt_core.training.data_order import data_order, longest_first, micro_batches, total_steps
from rlt_core.training.metrics import StepRecorder, mean_of
from rlt_core.training.policy import adapters, load_policy, trainer_arguments


class _Trainer(ResumableTrainer, SFTTrainer):
    """SFTTrainer that resumes exactly."""


def train_sft(
    model: Path, rows: Sequence[Row], config: SFTConfig, context: TrainingContext
) -> dict[str, float]:
    """Train a model folder on rows; write `model/` and `train_steps.parquet`.

    The loss of a step is the mean over the labelled tokens of its whole batch, whatever the
    micro-batches. Rows longer than `config.max_tokens`, or than the model's positions, are dropped
    and counted (`dropped_too_long`). Raises UserError if no row is left, Stopped after a stop
    request.
    """
    seed, resources = context.seed, context.resources
    set_seed(seed)
    policy = load_policy(model, config, resources)
    kept = _fitting(rows, config, policy, context.stage)
    steps = total_steps(config, len(kept), config.batch_size)
    order = data_order(len(kept), config.batch_size, steps, seed)
    order = longest_first(order, [len(row.input_ids) for row in kept], config.batch_size)
    processes = join(resources).num_processes
    micro = micro_batches(config.batch_size, resources.micro_batch_size, processes)
    recorder = StepRecorder(context, steps, epochs_per_step=config.batch_size / len(kept))
    columns = {name: [getattr(row, name) for row in kept] for name in ("input_ids", "labels")}
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _Trainer(
            resources=resources,
            model=policy,
            args=TRLConfig(
                output_dir=scratch,
                **trainer_arguments(config, steps, micro, seed, resources),
                max_length=None,
                packing=False,
                loss_type="nll",
                router_aux_loss_coef=0.0,
                train_sampling_strategy="sequential",
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=Dataset.from_dict(columns).select(order),
            processing_class=load_tokenizer(model),
            peft_config=adapters(config.lora),
        )
        trainer.run(context.work, recorder)
    trainer.finish(model, context.out, config.dtype)
    return _metrics(recorder.rows, len(kept), len(rows) - len(kept))


def _fitting(
    rows: Sequence[Row], config: SFTConfig, policy: PreTrainedModel, stage: str
) -> list[Row]:
    """Return the rows short enough to train on. Raises UserError if there is none."""
    limit = min(config.max_tokens, policy.config.get_text_config().max_position_embeddings)
    kept = [row for row in rows if len(row.input_ids) <= limit]
    if not kept:
        shortest = min((len(row.input_ids) for row in rows), default=0)
        raise UserError(
            f"{stage}: none of {len(rows)} training rows fits into {limit} tokens (the shortest "
            f"has {shortest}); raise max_tokens, or take a model with more positions"
        )
    return kept


def _metrics(steps: Sequence[dict[str, Any]], rows: int, dropped: int) -> dict[str, float]:
    seconds = sum(step["seconds"] for step in steps)
    return {
        "rows": rows,
        "dropped_too_long": dropped,
        "steps": len(steps),
        "loss_first": steps[0]["loss"],
        "loss_last": mean_of(steps[-10:], "loss"),
        "tokens_per_s": sum(step["tokens"] for step in steps) / seconds,
    }
