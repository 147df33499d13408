"""rank-statistics: does the rank of a trace predict what a student learns from it?"""

from typing import Any

from rlt_core.data.trace_selection import columns, ranks_of_set
from rlt_core.evaluation.utility import utility_by_rank
from rlt_core.ranking import rank_ablation
from rlt_core.rows import write_rows
from rlt_core.stages import RankStatisticsConfig
from tasks.stage import StageContext

Row = dict[str, Any]


def run(ctx: StageContext) -> dict[str, float]:
    """Compute statistics over the students' answers, question by question."""
    config = ctx.config_as(RankStatisticsConfig)
    samples = {
        (seed, rank): _answers(ctx, f"rank-{rank}@{seed}", config.task)
        for seed in config.seeds
        for rank in range(1, config.ranks + 1)
    }
    ranked = {seed: _ranked(ctx, config, seed) for seed in config.seeds}
    rows, metrics = rank_ablation(samples, ranked, config.task, config.resamples, config.ranked_by)
    utility, prediction = utility_by_rank([row for rows in ranked.values() for row in rows])
    rows = [row | {"utility": utility.get((row["seed"], row["rank"]))} for row in rows]
    write_rows(ctx.out / "rank_scores.parquet", "rank_scores", rows)
    return metrics | prediction


def _answers(ctx: StageContext, name: str, task: str) -> list[Row]:
    rows = ctx.rows(name, "eval_samples", ["task", "question_id", "outcome"])
    return [row for row in rows if row["task"] == task]


def _ranked(ctx: StageContext, config: RankStatisticsConfig, seed: int) -> list[Row]:
    """Rewards and ranks of the traces of a seed's sets, before `n_questions` and the limit of a
    row's length drop any."""
    needed = [*columns(config.ranked_by), "reward", "utility"]
    scores = ctx.rows(f"scores@{seed}", "scores", needed)
    ranks = ranks_of_set(scores, config.ranked_by, seed)
    return [
        {name: row[name] for name in ("question_id", "reward", "utility")}
        | {"seed": seed, "rank": ranks[row["trace_id"]]}
        for row in scores
        if row["trace_id"] in ranks
    ]
