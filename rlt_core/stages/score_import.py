"""Rewards from a file."""

from __future__ import annotations

from rlt_core.config import Frozen
from rlt_core.stages.base import Stage


class ScoreImportConfig(Frozen):
    """Rewards that others computed, by the content of their file."""

    name: str
    digest: str


STAGE = Stage(
    "score-import",
    version=2,
    kind="scores",
    config=ScoreImportConfig,
    tables=("scores",),
    sections=("imports",),
)
