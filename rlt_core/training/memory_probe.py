"""The longest sequences go first: a training that runs out of memory does so before its first step.

One forward and backward pass with everything beside it that a step holds: AdamW's moments, the
gradients of earlier micro-batches. Weights, random states and results are as without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

Loss = Callable[[nn.Module], Tensor]


class LongestFirst(TrainerCallback):
    """Probes once all that is trained is in its place."""

    def __init__(self, trainer: Trainer, longest_loss: Loss) -> None:
        """`longest_loss`: of a micro-batch of the longest sequences that may come."""
        self._trainer, self._longest_loss = trainer, longest_loss

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        probe(self._trainer, self._longest_loss)


def probe(trainer: Trainer, longest_loss: Loss) -> None:
    """Forward and backward pass of a loss of the model; its gradients are dropped. All processes
    must call it. Raises what running out of memory raises."""
    model, optimizer, device = trainer.model_wrapped, trainer.optimizer, trainer.accelerator.device
    assert optimizer is not None
    trained = [each for group in optimizer.param_groups for each in group["params"]]
    on_gpu = device.type == "cuda"
    was_training = model.training
    with torch.random.fork_rng([device] if on_gpu else []):
        new = [] if optimizer.state else trained
        moments = [torch.empty_like(each) for each in new for _ in range(2)]
        if trainer.args.gradient_accumulation_steps > 1:
            for each in trained:
                each.grad = torch.zeros_like(each)
        model.train()
        with trainer.compute_loss_context_manager():
            loss = longest_loss(model)
        trainer.accelerator.backward(loss)
    model.train(was_training)
    model.zero_grad()
    del moments, loss
    if on_gpu:
        torch.cuda.empty_cache()
