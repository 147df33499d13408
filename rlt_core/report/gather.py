"""Read a run's artifacts and compute everything that its report shows."""

from collections.abc import Mapping
from pathlib import Path

from rlt_core.report.compared import compared
from rlt_core.report.examples import explanations
from rlt_core.report.experiment import experiment
from rlt_core.report.inputs import Parts
from rlt_core.report.overlaps import overlap_rows
from rlt_core.report.ranks import rank_sets
from rlt_core.report.scores import Evaluations
from rlt_core.report.trace_sets import trace_sets
from rlt_core.report.training import alarms, curves
from rlt_core.stages import ReportConfig
from rlt_core.store import Manifest, Store

TOY_PROFILES = ("smoke", "tiny", "tiny-science")
"""Profiles whose results only show that the pipeline works."""


class ReportData:
    """Everything that a report shows, read and computed from a run's artifacts."""

    def __init__(
        self,
        inputs: Mapping[str, tuple[Manifest, Path]],
        config: ReportConfig,
        key: str,
        store: Store,
        of: int = 0,
    ) -> None:
        """`inputs`: name in the graph -> manifest and local folder; `key`: key of the report;
        `store`: has the tokenizers; `of`: nodes that a finished run has, where it is not.

        Rank statistics need the evaluations that they were made from among the inputs.
        """
        parts = Parts(inputs)
        manifests = [part.manifest for part in parts.all]
        self.title, self.profile, self.key = config.title, config.profile, key
        self.is_toy = config.profile in TOY_PROFILES
        self.has_rows = bool(config.rows)
        self.nodes = parts.all
        self.unfinished = f"unfinished: {len(inputs)} of {of} nodes" if of else ""
        self.seeds = sorted({part.seed for part in parts.all if part.seed is not None})
        self.git_commits = sorted({one.git_commit for one in manifests if one.git_commit})
        self.packages = {name: one for each in manifests for name, one in each.packages.items()}
        self.evaluations = evaluations = Evaluations(parts)
        self.experiment = experiment(config, evaluations)
        self.overlaps = list(overlap_rows(config.overlaps, evaluations))
        self.compared = compared(config.compared, parts) if config.compared else None
        self.rank_sets = rank_sets(parts, evaluations)
        self.ranks = self.rank_sets[0] if self.rank_sets else None  # by reward, if there is one
        self.explanations = explanations(parts, store)
        self.traces, self.reward_gain = trace_sets(parts)
        self.rewards = [line for line in self.traces if line["reward"]]
        self.curves = curves(parts)
        self.alarms = alarms(parts, self.curves, self.traces)

    @property
    def names(self) -> dict[str, str]:
        """Variant of a model's evaluations -> the name of its row."""
        return {
            row["model"]: row["row"] for row in (self.experiment.last if self.experiment else ())
        }
