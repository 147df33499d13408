"""A model to start from: trained from scratch, or imported."""

from collections.abc import Mapping
from pathlib import Path

from rlt_core.config import Frozen, ScratchModel, SFTConfig
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage
from rlt_core.stages.cost import Cost, Inputs, TrainingWork


class BaseModelConfig(Frozen):
    """A model from scratch, or an imported one by its content."""

    scratch: ScratchModel | None = None
    imported: str | None = None
    """`hub:repo@commit`, `artifact:key`, or the digest of a folder or package file."""
    format: PromptFormat | None = None
    """Format of a scratch model: its tags are single tokens and its documents follow it."""


def _cost(config: BaseModelConfig, inputs: Inputs) -> Cost:
    scratch = config.scratch
    if scratch is None or not scratch.steps:
        return Cost(number_bytes=4 if scratch else 2)
    most = scratch.max_positions
    sft = SFTConfig(steps=scratch.steps, batch_size=scratch.batch_size, max_tokens=most)
    return Cost(TrainingWork(sft, 1, most / 2))


def _check(config: BaseModelConfig, paths: Mapping[str, str]) -> None:
    if config.imported and config.imported.startswith("folder:"):
        from rlt_core.models import try_folder

        try_folder(Path(paths["source"]), paths["source"])


STAGE = Stage(
    "base-model",
    version=2,
    kind="model",
    config=BaseModelConfig,
    model=True,
    pool="gpu",
    sections=("base_model",),
    essentials=("source", "layers", "width", "steps", "learning_rate"),
    inputs={"questions": "The questions that a model from scratch is trained on"},
    cost=_cost,
    check=_check,
)
