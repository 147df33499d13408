"""Read a run's artifacts and compute everything that its report shows."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from rlt_core.explain import Explained, take_apart
from rlt_core.report.experiment import experiment
from rlt_core.report.inputs import Part, Parts, Row
from rlt_core.report.ranks import rank_sets
from rlt_core.report.scores import Evaluations, overlap_rows
from rlt_core.report.trace_sets import AFTER, BEFORE, NAMES, compared, trace_sets
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
        self.experiment = experiment(config, evaluations, finished=not of)
        self.overlaps = list(overlap_rows(config.overlaps, evaluations))
        self.compared = None
        if config.compared:
            try:
                self.compared = compared(config.compared, parts)
            except ValueError:  # not all of their traces were scored yet
                if not of:
                    raise
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


# ---------------------------------------------------------------- sample texts
def explanations(parts: Parts, store: Store) -> Row | None:
    """The first question by id, not picked, and the best of its explanations, the one in the middle
    and the worst: of a teacher before and after RL where there are both. `page`: path of a page of
    `rlt traces`."""
    scored = {variant: each[0] for variant, each in parts.by_variant("trace-scoring").items()}
    chosen = [scored[name] for name in (BEFORE, AFTER) if name in scored] or [*scored.values()][:1]
    rows = [
        (part, row)
        for part in chosen
        for row in part.rows(
            "scores", "trace_id", "question_id", "closed", "reward", "r_ss", "r_kl", "penalty"
        )
        if row["reward"] is not None
    ]
    asked = [{row["question_id"] for part, row in rows if part is each} for each in chosen]
    question = min(set.intersection(*asked), default=None) if asked else None
    source = chosen[0].inputs.get("questions") if question else None
    found = source.row("questions", str(question)) if source else None
    if found is None:
        return None
    ranked = [each for each in rows if each[1]["question_id"] == question]
    ranked.sort(key=lambda each: -each[1]["reward"])
    shown = [
        _explanation(store, *ranked[place]) | {"rank": place + 1}
        for place in sorted({0, len(ranked) // 2, len(ranked) - 1})
    ]
    page = f"question/{quote(str(question), safe='')}"
    return found | {"page": page, "shown": shown, "count": len(ranked)}


def _explanation(store: Store, part: Part, row: Row) -> Row:
    """One explanation, and the solution after it, as far as the student's log-probs go."""

    def find(table: str, run: str, name: str) -> Row | None:
        return part.made[run].row(table, name) if run in part.made else None

    full = find("scores", part.key, row["trace_id"])
    trace = find("traces", part.manifest.inputs["traces"].key, row["trace_id"])
    return row | {
        "found": take_apart(store, find, Explained(part.manifest, full or row)),
        "teacher": NAMES.get(part.variant, part.variant),
        "text": trace["text"] if trace else "",
        "page": f"trace/{part.key}/{quote(row['trace_id'], safe='')}",
    }
