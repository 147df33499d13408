"""Statistics of student score over rank."""

from rlt_core.config import Frozen, RankedSet
from rlt_core.stages.base import Stage


class RankStatisticsConfig(Frozen):
    """Statistics of student score over rank."""

    ranks: int
    seeds: tuple[int, ...]
    resamples: int
    task: str
    ranked_by: RankedSet


STAGE = Stage(
    "rank-statistics",
    version=1,
    kind="ranking",
    config=RankStatisticsConfig,
    tables=("rank_scores",),
    sections=("rank_ablation",),
    essentials=("ranks", "n_questions", "resamples"),
    inputs=None,
)
