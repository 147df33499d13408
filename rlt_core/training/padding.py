"""GRPOTrainer without the log-probs of padding: less work, the same loss.

Shapes: B sequences, C completion positions.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from trl import GRPOTrainer


class UnpaddedGRPOTrainer(GRPOTrainer):
    """GRPOTrainer that leaves out columns that are padding in every row of a micro-batch."""

    _logps_BC: Tensor
    """The policy's log-probs of the last loss: TRL computes them, but does not return them."""

    def _get_per_token_logps_and_entropies(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int,
        batch_size: int | None = None, **options: Any,
    ) -> tuple[Tensor, Tensor | None, None]:  # fmt: skip
        """Override: sequences of similar length go together, and padding is cut off."""
        order_B = attention_mask[:, -logits_to_keep:].sum(1).argsort(descending=True, stable=True)
        logps, entropies = [], []
        for chunk in order_B.split(batch_size or len(order_B)):
            used = attention_mask[chunk].any(0).nonzero()
            start, end = int(used[0]), int(used[-1]) + 1
            cut = attention_mask.size(1) - end
            logps_BC, entropies_BC, _ = super()._get_per_token_logps_and_entropies(
                model,
                input_ids[chunk, start:end],
                attention_mask[chunk, start:end],
                logits_to_keep - cut,
                **options,
            )
            logps.append(pad(logps_BC, (0, cut)))
            if entropies_BC is not None:
                entropies.append(pad(entropies_BC, (0, cut)))
        back_B = order_B.argsort()
        logps_BC = torch.cat(logps)[back_B]
        if torch.is_grad_enabled():
            self._logps_BC = logps_BC.detach()
        return logps_BC, torch.cat(entropies)[back_B] if entropies else None, None
