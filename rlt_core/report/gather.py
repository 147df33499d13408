"""Read a run's artifacts and compute everything that its report shows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlt_core.formats import label_of
from rlt_core.report.compared import Compared, compared
from rlt_core.report.examples import Example, examples
from rlt_core.report.experiment import Experiment, experiment
from rlt_core.report.inputs import Parts
from rlt_core.report.overlaps import OverlapLine, overlap_lines
from rlt_core.report.ranks import RankAblation, rank_sets
from rlt_core.report.scores import Evaluations, PairLine, ScoreLine, pair_lines, score_lines
from rlt_core.report.texts import NOTHING
from rlt_core.report.traces import TraceSet, trace_sets
from rlt_core.report.training import Curve, Rewards, alarms, curves, rewards
from rlt_core.stages import ReportConfig
from rlt_core.store import Manifest

TOY_PROFILES = ("smoke", "tiny", "tiny-science")
"""Profiles whose results only show that the pipeline works."""


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
    format: str
    """Prompt format that its model ran with."""
    seconds: float


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows."""

    title: str
    profile: str
    key: str
    seeds: list[int]
    scores: list[ScoreLine]
    pairs: list[PairLine]
    rewards: Rewards
    traces: list[TraceSet]
    curves: list[Curve]
    experiment: Experiment | None
    overlaps: list[OverlapLine]
    compared: Compared | None
    rank_sets: list[RankAblation]
    examples: list[Example]
    data: list[DataLine]
    costs: list[CostLine]
    alarms: list[str]
    nodes: list[NodeLine]
    packages: dict[str, str]
    git_commits: list[str]

    @property
    def is_toy(self) -> bool:
        """Whether the results only show that the pipeline works."""
        return self.profile in TOY_PROFILES

    @property
    def ranks(self) -> RankAblation | None:
        """The set by reward, or the first where there is none: `rank_sets` begins with it."""
        return self.rank_sets[0] if self.rank_sets else None

    @property
    def total_cost(self) -> CostLine:
        """Work of all stages."""
        total = {
            name: sum(getattr(line, name) for line in self.costs)
            for name in ("nodes", "seconds", "gpu_seconds", "bytes")
        }
        return CostLine("all", longest=max(line.longest for line in self.costs), **total)

    @property
    def totals(self) -> list[ScoreLine]:
        """Scores over all seeds of each model."""
        return [line for line in self.scores if line.seed is None]

    @property
    def single_seeds(self) -> list[ScoreLine]:
        """Scores of each seed of the models that have several."""
        return [line for line in self.scores if line.seed is not None]


def gather(
    inputs: Mapping[str, tuple[Manifest, Path]], config: ReportConfig, key: str
) -> ReportData:
    """Read the artifacts (name in the graph -> manifest and local folder) and compute.

    `key`: key of the report itself. Rank statistics need the evaluations that they were made from
    among the inputs. An experiment's rows replace the pairs of all models.
    """
    parts = Parts(inputs)
    evaluations = Evaluations(parts)
    scored, trained, traces = rewards(parts), curves(parts), trace_sets(parts)
    manifests = [part.manifest for part in parts.all]
    return ReportData(
        title=config.title,
        profile=config.profile,
        key=key,
        seeds=sorted({part.seed for part in parts.all if part.seed is not None}),
        scores=score_lines(evaluations),
        pairs=[] if config.rows else pair_lines(evaluations),
        rewards=scored,
        traces=traces,
        curves=trained,
        experiment=experiment(config, evaluations),
        overlaps=list(overlap_lines(config.overlaps, evaluations)),
        compared=compared(config.compared, parts) if config.compared else None,
        rank_sets=rank_sets(parts, evaluations),
        examples=examples(parts, evaluations.students),
        data=_data(parts),
        costs=_costs(manifests),
        alarms=list(alarms(parts, trained, scored, traces)),
        nodes=[
            NodeLine(
                name=part.name,
                key=part.manifest.ref.key,
                inputs={name: ref.key for name, ref in part.manifest.inputs.items()},
                device=part.manifest.device,
                format=label_of(part.manifest.config) or NOTHING,
                seconds=part.manifest.seconds,
            )
            for part in parts.all
        ],
        packages={name: version for one in manifests for name, version in one.packages.items()},
        git_commits=sorted({one.git_commit for one in manifests if one.git_commit}),
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
    stages: dict[str, list[Manifest]] = defaultdict(list)
    for manifest in manifests:
        stages[manifest.stage].append(manifest)
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
