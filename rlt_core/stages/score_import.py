"""Rewards from a file."""

from collections.abc import Mapping
from pathlib import Path

from rlt_core.config import Frozen
from rlt_core.stages.base import Stage


class ScoreImportConfig(Frozen):
    """Rewards that others computed, by the content of their file."""

    name: str
    digest: str


def _check(config: ScoreImportConfig, paths: Mapping[str, str]) -> None:
    from rlt_core.data.imports import check_scores

    check_scores(Path(paths["source"]), config.name)


STAGE = Stage(
    "score-import",
    version=2,
    kind="scores",
    config=ScoreImportConfig,
    tables=("scores",),
    sections=("imports",),
    essentials=("scores",),
    check=_check,
)
