"""score-import: rewards computed elsewhere → the table `scores`."""

from pathlib import Path

from rlt_core.data.imports import import_scores
from rlt_core.stages import ScoreImportConfig
from tasks.stage import StageContext


def run(ctx: StageContext) -> dict[str, float]:
    """Import rewards and ranks; there are no log-probs."""
    config = ctx.config_as(ScoreImportConfig)
    return import_scores(Path(ctx.spec.paths["source"]), config.name, ctx.out)
