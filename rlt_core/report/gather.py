"""Read a run's artifacts and compute everything that its report shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlt_core.report.compared import Compared, compared
from rlt_core.report.examples import examples
from rlt_core.report.experiment import Experiment, experiment
from rlt_core.report.inputs import Part, Parts, Row
from rlt_core.report.overlaps import overlap_rows
from rlt_core.report.ranks import RankAblation, rank_sets
from rlt_core.report.scores import Evaluations, PairLine, ScoreLine, pair_lines, score_lines
from rlt_core.report.trace_sets import TraceSet, trace_sets
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
    overlaps: list[Row]
    compared: Compared | None
    rank_sets: list[RankAblation]
    examples: list[str]
    """Markdown."""
    data: list[DataLine]
    alarms: list[str]
    nodes: list[Part]
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
        overlaps=list(overlap_rows(config.overlaps, evaluations)),
        compared=compared(config.compared, parts) if config.compared else None,
        rank_sets=rank_sets(parts, evaluations),
        examples=examples(parts, evaluations.students),
        data=_data(parts),
        alarms=list(alarms(parts, trained, scored, traces)),
        nodes=parts.all,
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
