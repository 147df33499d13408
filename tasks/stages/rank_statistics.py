"""rank-statistics: does the reward's rank predict what a student learns?"""

from __future__ import annotations

from rlt_core.ranking import rank_ablation
from rlt_core.rows import read_rows, write_rows
from rlt_core.stages import RankStatisticsConfig
from tasks.job import Job


def run(job: Job) -> dict[str, float]:
    """Statistics over the students' answers, question by question."""
    config = job.config_as(RankStatisticsConfig)
    samples = {
        (seed, rank): [
            row
            for row in read_rows(job.tables(f"rank-{rank}@{seed}"), "eval_samples")
            if row["task"] == config.task
        ]
        for seed in config.seeds
        for rank in range(1, config.ranks + 1)
    }
    scores = {
        seed: read_rows(job.tables(f"scores@{seed}"), "scores", ["rank", "reward"])
        for seed in config.seeds
    }
    rows, metrics = rank_ablation(samples, scores, config.task, config.resamples)
    write_rows(job.out / "rank_scores.parquet", "rank_scores", rows)
    return metrics
