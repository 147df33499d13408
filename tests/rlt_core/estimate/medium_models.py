"""Random models of a few million parameters, and a training of them by the project's own code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from rlt_core.config import SFTConfig, StageResources
from rlt_core.estimate.shapes import Shape, of_config
from rlt_core.models import save_model, tiny_tokenizer
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Row
from rlt_core.store import Workspace
from rlt_core.store.files import Files
from rlt_core.training.context import TrainingContext
from rlt_core.training.sft import train_sft

FAMILIES = {"llama": LlamaConfig, "qwen2": Qwen2Config}
SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


def medium(family: str, tied: bool = False, **sizes: Any) -> Any:
    """A config of a model of a few million parameters."""
    return FAMILIES[family](**(SIZES | {"vocab_size": 3000} | sizes), tie_word_embeddings=tied)


def shape_of(config: Any) -> Shape:
    shape = of_config(config.to_dict())
    assert shape is not None
    return shape


def saved(config: Any, folder: Path, dtype: str = "float32") -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    save_model(model, tiny_tokenizer(load_format("rlt"), 512), folder)
    return folder


def train(folder: Path, place: Path, tokens: int, config: SFTConfig, **resources: Any) -> None:
    """Steps of SFT on rows of exactly so many tokens."""
    row = Row(input_ids=[7] * tokens, labels=[7] * tokens)
    work = Workspace(Files(str(place / "store")), "key")
    context = TrainingContext(
        "teacher-sft", 0, place / "out", work, StageResources(**resources), Progress()
    )
    train_sft(folder, [row] * config.batch_size, config, context)


def bytes_of(tensors: Any) -> int:
    """Of their storages, each once."""
    storages = {each.untyped_storage() for each in tensors}
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())


class Held:
    """Bytes of an optimiser's weights, gradients and moments at its second step."""

    def __init__(self) -> None:
        self.found: list[dict[str, int]] = []

    def watch(self) -> Callable[[], None]:
        """Begin; returns what ends it."""
        return register_optimizer_step_pre_hook(self._look).remove

    def _look(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        moments = [
            tensor
            for state in optimizer.state.values()
            for tensor in state.values()
            if torch.is_tensor(tensor) and tensor.dim()
        ]
        self.found.append(
            {
                "trained": bytes_of(parameters),
                "gradients": bytes_of(each.grad for each in parameters if each.grad is not None),
                "optimizer": bytes_of(moments),
            }
        )
