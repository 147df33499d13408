"""A pass over the longest sequences before the first step, so that a training that runs out of
memory does so at once."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import Trainer


def probe_memory(trainer: Trainer, longest_loss: Callable[[nn.Module], Tensor]) -> None:
    """Run a forward and backward pass with all that a step holds beside it: AdamW's moments, the
    gradients of earlier micro-batches. Weights, random states and results are as without it.

    `longest_loss`: loss of a micro-batch of the longest possible sequences. All processes must call
    it. Raises what running out of memory raises.
    """
    model, optimizer, device = trainer.model_wrapped, trainer.optimizer, trainer.accelerator.device
    assert optimizer is not None
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    on_gpu = device.type == "cuda"
    was_training = model.training
    with torch.random.fork_rng([device] if on_gpu else []):
        new = [] if optimizer.state else parameters
        moments = [torch.empty_like(each) for each in new for _ in range(2)]
        if trainer.args.gradient_accumulation_steps > 1:
            for each in parameters:
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
