"""score-import: rewards that others computed → the table `scores`."""

from __future__ import annotations

from pathlib import Path

from rlt_core.data.scores import import_scores
from rlt_core.stages import ScoreImportConfig
from tasks.job import Job


def run(job: Job) -> dict[str, float]:
    """Rewards and ranks; no log-probs."""
    config = job.config_as(ScoreImportConfig)
    return import_scores(Path(job.spec.paths["source"]), config.name, job.out)
