"""From a run's artifacts to what its report says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlt_core.ranking import STATISTICS
from rlt_core.report.examples import Example, examples
from rlt_core.report.inputs import Parts
from rlt_core.report.scores import Evaluations, PairLine, ScoreLine, pair_lines, score_lines
from rlt_core.report.statistics import fraction, matrix
from rlt_core.report.traces import TraceSet, trace_sets
from rlt_core.report.training import Curve, Rewards, alarms, curves, rewards
from rlt_core.store import Manifest

TOY_PROFILES = ("smoke", "tiny")
"""Profiles whose results say something about the pipeline only."""


@dataclass(frozen=True)
class RankLine:
    """The students of one rank, over all seeds."""

    rank: int
    value: float
    low: float
    high: float
    mean_reward: float | None
    traces: int
    by_seed: dict[int, float]


@dataclass(frozen=True)
class Statistic:
    """A statistic over ranks; None where it is not defined."""

    name: str
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class RankAblation:
    """Student score over reward rank."""

    task: str
    lines: list[RankLine]
    statistics: list[Statistic]
    undefined_resamples: float


@dataclass(frozen=True)
class DataLine:
    """Questions of one data set."""

    name: str
    splits: dict[str, int]
    dropped: dict[str, int]
    """Reason -> rows."""


@dataclass(frozen=True)
class CostLine:
    """Work of one stage."""

    stage: str
    nodes: int
    seconds: float
    gpu_seconds: float
    longest: float
    bytes: int


@dataclass(frozen=True)
class NodeLine:
    """One artifact and what it was made from."""

    name: str
    key: str
    inputs: dict[str, str]
    """Name of the input -> its key."""
    device: str
    seconds: float


@dataclass(frozen=True)
class ReportData:
    """All that a report says."""

    title: str
    profile: str
    key: str
    seeds: list[int]
    scores: list[ScoreLine]
    pairs: list[PairLine]
    rewards: Rewards
    traces: list[TraceSet]
    curves: list[Curve]
    ranks: RankAblation | None
    examples: list[Example]
    data: list[DataLine]
    costs: list[CostLine]
    alarms: list[str]
    nodes: list[NodeLine]
    packages: dict[str, str]
    git_commits: list[str]

    @property
    def is_toy(self) -> bool:
        """Whether the results are a control of the pipeline only."""
        return self.profile in TOY_PROFILES

    @property
    def totals(self) -> list[ScoreLine]:
        """Scores over all seeds of each model."""
        return [line for line in self.scores if line.seed is None]

    @property
    def single_seeds(self) -> list[ScoreLine]:
        """Scores of each seed of the models that have several."""
        return [line for line in self.scores if line.seed is not None]


def gather(
    inputs: Mapping[str, tuple[Manifest, Path]], *, profile: str, title: str, key: str
) -> ReportData:
    """Read the artifacts (name in the graph -> manifest and local folder) and compute.

    `key`: of the report itself. What a run did not do is left out. A rank ablation needs the
    evaluations that it was made from among the inputs.
    """
    parts = Parts(inputs)
    evaluations = Evaluations(parts)
    scored, trained, traces = rewards(parts), curves(parts), trace_sets(parts)
    manifests = [part.manifest for part in parts.all]
    return ReportData(
        title=title,
        profile=profile,
        key=key,
        seeds=sorted({part.seed for part in parts.all if part.seed is not None}),
        scores=score_lines(evaluations),
        pairs=pair_lines(evaluations),
        rewards=scored,
        traces=traces,
        curves=trained,
        ranks=_ranks(parts, evaluations),
        examples=examples(parts, evaluations.students),
        data=_data(parts),
        costs=_costs(manifests),
        alarms=alarms(parts, trained, scored, traces),
        nodes=[
            NodeLine(
                name=part.name,
                key=part.manifest.ref.key,
                inputs={name: ref.key for name, ref in part.manifest.inputs.items()},
                device=part.manifest.device,
                seconds=part.manifest.seconds,
            )
            for part in parts.all
        ],
        packages={name: version for one in manifests for name, version in one.packages.items()},
        git_commits=sorted({one.git_commit for one in manifests if one.git_commit}),
    )


def _ranks(parts: Parts, evaluations: Evaluations) -> RankAblation | None:
    ablations = parts.of("rank-statistics")
    if not ablations:
        return None
    rows = [row for row in ablations[0].rows("rank_scores") if row["value"] is not None]
    metrics = ablations[0].manifest.metrics
    ranks = sorted({row["rank"] for row in rows})
    return RankAblation(
        task=rows[0]["task"] if rows else "",
        lines=[_rank_line(rank, rows, evaluations) for rank in ranks],
        statistics=[
            Statistic(name, *(metrics.get(f"{name}{end}") for end in ("", "_low", "_high")))
            for name in STATISTICS
        ],
        undefined_resamples=metrics.get("undefined_resamples", 0.0),
    )


def _rank_line(rank: int, all_rows: Sequence[dict[str, Any]], evaluations: Evaluations) -> RankLine:
    """With one seed the interval that the ablation recorded, else one that knows of the seeds."""
    rows = [row for row in all_rows if row["rank"] == rank]
    low, high = rows[0]["low"], rows[0]["high"]
    if len(rows) > 1:
        values = evaluations.by_question(f"rank-{rank}", rows[0]["task"], "avg")
        estimate = fraction(matrix(values), sum(map(len, values)))
        low, high = estimate.low, estimate.high
    rewards = [row["mean_reward"] for row in rows if row["mean_reward"] is not None]
    return RankLine(
        rank=rank,
        value=sum(row["value"] for row in rows) / len(rows),
        low=low,
        high=high,
        mean_reward=sum(rewards) / len(rewards) if rewards else None,
        traces=sum(row["traces"] for row in rows),
        by_seed={row["seed"]: row["value"] for row in rows},
    )


def _data(parts: Parts) -> list[DataLine]:
    return [
        DataLine(
            name=part.name,
            splits=dict(Counter(row["split"] for row in part.rows("questions", "split"))),
            dropped=dict(Counter(row["reason"] for row in part.rows("dropped", "reason"))),
        )
        for part in parts.of("dataset-prep")
    ]


def _costs(manifests: Sequence[Manifest]) -> list[CostLine]:
    stages: dict[str, list[Manifest]] = {}
    for manifest in manifests:
        stages.setdefault(manifest.stage, []).append(manifest)
    return [
        CostLine(
            stage=stage,
            nodes=len(made),
            seconds=sum(one.seconds for one in made),
            gpu_seconds=sum(one.gpu_seconds for one in made),
            longest=max(one.seconds for one in made),
            bytes=sum(one.bytes for one in made),
        )
        for stage, made in stages.items()
    ]
