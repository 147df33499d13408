"""The model in training: how it is loaded and adapted, and the arguments of its trainer."""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging

from rlt_core import processes
from rlt_core.config import GRPOConfig, LoRA, SFTConfig, StageResources
from rlt_core.errors import UserError
from rlt_core.models import compute_dtype, load_model, pick_device
from rlt_core.training.data_order import MicroBatches

CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in {each.name for each in fields(TrainingArguments)}
    else "gradient_checkpointing"
)
"""The argument's name: transformers renamed it after 5.19, which vLLM 0.32 asks for."""


def load_policy(
    folder: Path, config: SFTConfig | GRPOConfig, resources: StageResources
) -> PreTrainedModel:
    """Load the model to train; if the trainer will shard it, on the CPU.

    With `bfloat16` the forward pass runs in it (autocast) over float32 master weights, since an
    update at a learning rate of 1e-6 is smaller than a bfloat16 weight can hold. With LoRA the
    frozen base needs no master weights. Raises UserError if the model is to be sharded and there is
    one process.
    """
    logging.disable_progress_bar()
    hybrid = resources.sharding == "hybrid"
    sharing = processes.of_this_machine() if hybrid else processes.count()
    if resources.sharding != "none" and sharing == 1:
        raise UserError(
            f"resources.sharding={resources.sharding} shares a model out among several processes, "
            "and this is one; raise resources.processes, or set resources.sharding=none"
        )
    dtype = compute_dtype(config.dtype, resources.device)
    if resources.sharding == "none":
        return load_model(folder, dtype if config.lora else "float32", resources.device)
    return load_model(folder, dtype if config.lora else "auto")


def adapters(lora: LoRA | None) -> LoraConfig | None:
    """Return the config of adapters on every linear layer except the head."""
    if lora is None:
        return None
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def trainer_arguments(
    config: SFTConfig | GRPOConfig, steps: int, micro: MicroBatches, seed: int,
    resources: StageResources,
) -> dict[str, Any]:  # fmt: skip
    """Return the keyword arguments that SFT and GRPO share in TRL's configs."""
    schedule = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    return {
        "seed": seed, "max_steps": steps, "per_device_train_batch_size": micro.size,
        "gradient_accumulation_steps": micro.accumulation,
        "learning_rate": config.learning_rate, "lr_scheduler_type": schedule,
        "warmup_steps": math.ceil(config.warmup_ratio * steps), "optim": "adamw_torch",
        "adam_beta1": config.beta1, "adam_beta2": config.beta2,
        "weight_decay": config.weight_decay, "max_grad_norm": config.max_grad_norm,
        "bf16": compute_dtype(config.dtype, resources.device) == "bfloat16",
        "use_cpu": pick_device(resources.device) == "cpu",
        CHECKPOINTING: resources.gradient_checkpointing,
        "ddp_find_unused_parameters": False, "dataloader_pin_memory": False,
        "remove_unused_columns": False, "logging_steps": 1, "logging_nan_inf_filter": False,
        "save_strategy": "no", "eval_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "log_level": "error",
    }  # fmt: skip
