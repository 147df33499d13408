"""Answers and rewards that claims rest on, found by variant and seed.

Shapes: S training seeds, Q test questions, R ranks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rlt_core.config import Frozen
from rlt_core.errors import UserError
from rlt_core.evaluation.crossed import Floats
from rlt_core.evaluation.scores import UNGRADED
from rlt_core.rows import read_rows
from rlt_core.study.claims import Claim, CorrelationClaim, EquivalenceClaim, Study

COLUMNS = {
    "eval_samples": ["task", "question_id", "seed", "model", "sample", "outcome"],
    "scores": ["question_id", "seed", "sample", "rank", "reward"],
}
"""Table -> its columns that verdicts need: no text."""
TABLE_OF = {"evaluation": "eval_samples", "trace-scoring": "scores"}
"""Stage -> its table that verdicts read."""
NAME = re.compile(r"(?P<stage>[a-z-]+)(?:\[(?P<variant>.*)\])?(?:@(?P<seed>-?\d+))?")
"""Name of a node: `stage[variant]@seed`."""
RANKED = re.compile(r"(?:(?P<set>.+)-)?rank-(?P<rank>\d+)")
"""Variant of a rank's student; one without a set's name belongs to the set `reward`."""


class NodeEntry(Frozen):
    """A node of the graph, as `nodes.json` names it."""

    name: str
    key: str
    stage: str
    variant: str
    seed: int | None
    inputs: dict[str, str]
    """Name of the input -> its key."""

    @classmethod
    def parse(cls, key: str, name: str, inputs: Mapping[str, str]) -> NodeEntry:
        """The entry of a node with this name. Raises UserError for a text that is no name."""
        match = NAME.fullmatch(name)
        if match is None:
            raise UserError(f"{name!r} ({key}) is not the name of a node")
        return cls(
            name=name, key=key, stage=match["stage"], variant=match["variant"] or "",
            seed=int(match["seed"]) if match["seed"] else None, inputs=dict(inputs),
        )  # fmt: skip


class Catalogue:
    """Nodes, found by the names that claims use."""

    def __init__(self, entries: Iterable[NodeEntry]) -> None:
        self.by_key = {entry.key: entry for entry in entries}
        self.by_stage: dict[str, dict[str, list[NodeEntry]]] = defaultdict(dict)
        for entry in self.by_key.values():
            self.by_stage[entry.stage].setdefault(entry.variant, []).append(entry)

    def model(self, claim: Claim, field: str, variant: str) -> list[NodeEntry]:
        """The evaluations of a model, one per seed in their order; a single one of seed None if the
        model was not trained here. Raises UserError if there is none, or two with one seed."""
        where = f"claim {claim.name!r}: {field}"
        evaluations = self.by_stage["evaluation"]
        found = evaluations.get(variant, [])
        if not found:
            known = dict.fromkeys(re.sub(r"rank-\d+$", "rank-N", name) for name in evaluations)
            raise UserError(
                f"{where}: nothing called {variant!r} is evaluated; there are: {', '.join(known)}"
            )
        if len({entry.seed for entry in found}) != len(found):
            raise UserError(
                f"{where}: {variant!r} is evaluated in two ways by the experiments of this study; "
                "put the claims on one of them into a study of its own"
            )
        return sorted(found, key=lambda entry: (entry.seed is not None, entry.seed or 0))

    def ranks(self, claim: Claim) -> dict[int, str]:
        """Rank -> variant of its students, for a claim on a ranked set; empty for other claims.
        Raises UserError for fewer than three ranks."""
        if not isinstance(claim, CorrelationClaim | EquivalenceClaim) or claim.set is None:
            return {}
        matches = filter(None, map(RANKED.fullmatch, self.by_stage["evaluation"]))
        found = {int(m["rank"]): m[0] for m in matches if (m["set"] or "reward") == claim.set}
        if len(found) < 3:
            raise UserError(
                f"claim {claim.name!r}: set: it needs students of three ranks or more and "
                f"{claim.experiment} has {len(found)} of the set {claim.set!r}; see "
                "rank_ablation.sets and rank_ablation.ranks"
            )
        return dict(sorted(found.items()))

    def models(self, claim: Claim) -> dict[str, list[NodeEntry]]:
        """Variant -> evaluations of every model that a claim is about. Raises UserError."""
        named = [*(("set", variant) for variant in self.ranks(claim).values()), *claim.models]
        return {variant: self.model(claim, field, variant) for field, variant in named}

    def statistics(self, claim: Claim) -> list[NodeEntry]:
        """For a correlation: the statistics of its set, and the scores that ranked its traces."""
        if not isinstance(claim, CorrelationClaim):
            return []
        found = self.by_stage["rank-statistics"].get(claim.set, [])
        inputs = [item for entry in found for item in entry.inputs.items()]
        keys = dict.fromkeys(key for name, key in inputs if name.startswith("scores@"))
        return found + [self.by_key[key] for key in keys if key in self.by_key]

    def needed(self, claims: Sequence[Claim]) -> list[NodeEntry]:
        """Every node that verdicts on the claims read, each once. Raises UserError."""
        found = [
            entry
            for claim in claims
            for entries in (*self.models(claim).values(), self.statistics(claim))
            for entry in entries
        ]
        return list({entry.key: entry for entry in found}.values())


# ---------------------------------------------------------------- answers
@dataclass(frozen=True)
class Model:
    """A model's share of correct answers per question; NaN where none was graded."""

    seeds: tuple[int | None, ...]
    values_SQ: Floats

    @property
    def trained(self) -> bool:
        """Whether another run would train it with other seeds."""
        return self.seeds != (None,)


class Evidence:
    """The tables of a bundle: `tables/{key}/{table}.parquet`."""

    def __init__(self, folder: Path, catalogue: Catalogue, study: Study) -> None:
        self.folder = folder
        self.catalogue = catalogue
        self.study = study

    def models(self, claim: Claim) -> dict[str, Model]:
        """Variant -> answers of every model that a claim is about, on the same questions."""
        answers: dict[str, list[dict[str, float]]] = {}
        seeds: dict[str, tuple[int | None, ...]] = {}
        for variant, entries in self.catalogue.models(claim).items():
            answers[variant] = [self._answers(entry, claim.task) for entry in entries]
            seeds[variant] = tuple(entry.seed for entry in entries)
            if set(seeds[variant]) not in ({None}, set(self.study.seeds)):
                raise UserError(
                    f"claim {claim.name!r}: seeds of {variant!r} are missing or too many"
                )
        questions = sorted({q for each in answers.values() for one in each for q in one})
        return {
            variant: Model(
                seeds[variant],
                np.array([[one.get(q, np.nan) for q in questions] for one in each]),
            )
            for variant, each in answers.items()
        }

    def ranks(self, claim: Claim, models: Mapping[str, Model]) -> dict[int, Model]:
        """Rank -> its students among a claim's models."""
        return {rank: models[name] for rank, name in self.catalogue.ranks(claim).items()}

    def rewards(self, claim: CorrelationClaim) -> dict[int, float]:
        """Rank -> mean reward of its traces over all seeds, for a set that is ranked by reward."""
        found: dict[int, list[float]] = defaultdict(list)
        for entry in self.catalogue.statistics(claim) if claim.set == "reward" else []:
            for row in self._rows(entry, "rank", "reward"):
                if row["rank"] is not None and row["reward"] is not None:
                    found[row["rank"]].append(row["reward"])
        return {rank: float(np.mean(rewards)) for rank, rewards in found.items()}

    def _answers(self, entry: NodeEntry, task: str) -> dict[str, float]:
        """Question -> share of its graded answers that are correct."""
        marks: dict[str, list[bool]] = defaultdict(list)
        for row in self._rows(entry, "task", "question_id", "model", "outcome"):
            if row["model"] != entry.inputs.get("model"):
                raise UserError(
                    f"tables/{entry.key}: answers of the model {row['model']}, but "
                    f"{entry.name} tests {entry.inputs.get('model')}"
                )
            if row["task"] == task and row["outcome"] not in UNGRADED:
                marks[row["question_id"]].append(row["outcome"] == "correct")
        if not marks:
            raise UserError(f"{entry.name}: no graded answer of the task {task!r}")
        return {question: float(np.mean(each)) for question, each in marks.items()}

    def _rows(self, entry: NodeEntry, *columns: str) -> list[dict[str, Any]]:
        if entry.stage not in TABLE_OF:
            return []
        folder = self.folder / "tables" / entry.key
        try:
            return read_rows(folder, TABLE_OF[entry.stage], list(columns))
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"the table of {entry.name} cannot be read: {error}") from None
