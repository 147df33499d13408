"""A model to start from: trained from scratch, or imported."""

from __future__ import annotations

from rlt_core.config import Frozen, ScratchModel
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage


class BaseModelConfig(Frozen):
    """A model from scratch, or an imported one by its content."""

    scratch: ScratchModel | None = None
    imported: str | None = None
    """`hub:repo@commit`, or the digest of a folder or package file."""
    format: PromptFormat | None = None
    """Format of a scratch model: its tags are single tokens and its documents follow it."""


STAGE = Stage(
    "base-model",
    version=2,
    kind="model",
    config=BaseModelConfig,
    model=True,
    pool="gpu",
    sections=("base_model",),
    inputs={"questions": "The questions that a model from scratch is trained on"},
)
