"""Answers and rewards that claims rest on, found by variant and seed.

Shapes: S training seeds, Q test questions, R ranks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rlt_core.config import Frozen
from rlt_core.errors import UserError
from rlt_core.evaluation.crossed import Floats
from rlt_core.evaluation.scores import UNGRADED
from rlt_core.graph import Node
from rlt_core.rows import read_rows
from rlt_core.study.claims import Claim, CorrelationClaim, EquivalenceClaim, Study, variants

RankedClaim = CorrelationClaim | EquivalenceClaim
"""Claims on the students of every rank of a set."""

COLUMNS = {
    "eval_samples": ["task", "question_id", "seed", "model", "sample", "outcome"],
    "scores": ["question_id", "seed", "sample", "rank", "reward"],
}
"""Table -> the columns of it that verdicts need: no text."""
TABLE_OF = {"evaluation": "eval_samples", "trace-scoring": "scores"}
"""Stage -> the table that verdicts read of it."""
RANKED = re.compile(r"(?:(?P<set>.+)-)?rank-(?P<rank>\d+)")
"""Variant of the student of a rank; without a set's name it is of the set `reward`."""


class NodeEntry(Frozen):
    """A node of the graph, as a bundle names it."""

    name: str
    key: str
    stage: str
    variant: str
    seed: int | None
    inputs: dict[str, str]
    """Name of the input -> its key."""


def entry_of(node: Node) -> NodeEntry:
    """What a bundle says of a node."""
    return NodeEntry(
        name=node.name,
        key=node.key,
        stage=node.stage.name,
        variant=node.variant,
        seed=node.seed,
        inputs={name: parent.key for name, parent in node.inputs.items()},
    )


# ---------------------------------------------------------------- who is who
class Catalogue:
    """Nodes by what claims call them."""

    def __init__(self, entries: Iterable[NodeEntry]) -> None:
        self.by_key = {entry.key: entry for entry in entries}
        self.of_stage: dict[str, dict[str, list[NodeEntry]]] = defaultdict(dict)
        for entry in self.by_key.values():
            self.of_stage[entry.stage].setdefault(entry.variant, []).append(entry)

    def model(self, claim: Claim, field: str, variant: str) -> list[NodeEntry]:
        """The evaluations of a model, one a seed in their order; one of seed None if it was not
        trained here. Raises UserError where there is none, or two of a seed."""
        found = self.of_stage["evaluation"].get(variant, [])
        if not found:
            known = _abridged(self.of_stage["evaluation"])
            raise UserError(
                f"claim {claim.name!r}: {field}: nothing called {variant!r} is evaluated; there "
                f"are: {', '.join(known)}"
            )
        seeds = [entry.seed for entry in found]
        if len(set(seeds)) != len(seeds):
            raise UserError(
                f"claim {claim.name!r}: {field}: {variant!r} is evaluated in two ways by the "
                "experiments of this study; put the claims on one of them into a study of its own"
            )
        return sorted(found, key=lambda entry: (entry.seed is not None, entry.seed or 0))

    def ranks(self, claim: RankedClaim) -> dict[int, list[NodeEntry]]:
        """Rank -> the evaluations of its students; none for a claim without a set. Raises UserError
        unless there are three."""
        found: dict[int, list[NodeEntry]] = {}
        if claim.set is None:
            return found
        for variant in self.of_stage["evaluation"]:
            match = RANKED.fullmatch(variant)
            if match and (match["set"] or "reward") == claim.set:
                found[int(match["rank"])] = self.model(claim, "set", variant)
        if len(found) < 3:
            raise UserError(
                f"claim {claim.name!r}: set: it needs students of three ranks or more and "
                f"{claim.experiment} has {len(found)} of the set {claim.set!r}; see "
                "rank_ablation.sets and rank_ablation.ranks"
            )
        return dict(sorted(found.items()))

    def scores(self, claim: CorrelationClaim) -> list[NodeEntry]:
        """The scores by which the traces of a set were ranked, one a seed."""
        statistics = self.of_stage["rank-statistics"].get(claim.set, [])
        keys = [
            key
            for entry in statistics
            for name, key in entry.inputs.items()
            if name.startswith("scores@")
        ]
        return [self.by_key[key] for key in dict.fromkeys(keys) if key in self.by_key]

    def needed(self, claims: Sequence[Claim]) -> list[NodeEntry]:
        """All that verdicts on the claims read, each once. Raises UserError."""
        found: list[NodeEntry] = []
        for claim in claims:
            if isinstance(claim, RankedClaim):
                found += [entry for entries in self.ranks(claim).values() for entry in entries]
            if isinstance(claim, CorrelationClaim):
                found += self.of_stage["rank-statistics"].get(claim.set, [])
                found += self.scores(claim)
            for field, variant in variants(claim):
                found += self.model(claim, field, variant)
        return list({entry.key: entry for entry in found}.values())


def _abridged(names: Iterable[str]) -> list[str]:
    """Variants, of the students of ranks only the first of each set."""
    matches = {name: RANKED.fullmatch(name) for name in names}
    return [
        f"{name} …" if match else name
        for name, match in matches.items()
        if match is None or match["rank"] == "1"
    ]


# ---------------------------------------------------------------- what they answered
@dataclass(frozen=True)
class Model:
    """A model's share of correct answers a question; NaN where none was graded."""

    name: str
    seeds: tuple[int | None, ...]
    values_SQ: Floats

    @property
    def trained(self) -> bool:
        """Whether other training seeds could have come."""
        return self.seeds != (None,)


class Evidence:
    """The tables of a bundle: `tables/{key}/{table}.parquet`."""

    def __init__(self, folder: Path, catalogue: Catalogue, study: Study) -> None:
        self.folder = folder
        self.catalogue = catalogue
        self.study = study
        self._read: dict[tuple[str, str], dict[str, float]] = {}

    def models(self, claim: Claim) -> dict[str, Model]:
        """Variant -> model, for all that a claim names, on the same questions."""
        found = {
            variant: self.catalogue.model(claim, field, variant)
            for field, variant in variants(claim)
        }
        return self._on_one_set(claim, found)

    def ranks(self, claim: RankedClaim) -> dict[int, Model]:
        """Rank -> its students, on the same questions; none for a claim without a set."""
        by_name = {str(rank): found for rank, found in self.catalogue.ranks(claim).items()}
        return {int(name): model for name, model in self._on_one_set(claim, by_name).items()}

    def rewards(self, claim: CorrelationClaim) -> dict[int, float]:
        """Rank of the reward -> mean reward of its traces over all seeds."""
        found: dict[int, list[float]] = defaultdict(list)
        for entry in self.catalogue.scores(claim):
            for row in self._rows(entry, "rank", "reward"):
                if row["rank"] is not None and row["reward"] is not None:
                    found[row["rank"]].append(row["reward"])
        return {rank: float(np.mean(rewards)) for rank, rewards in sorted(found.items())}

    def _on_one_set(self, claim: Claim, found: dict[str, list[NodeEntry]]) -> dict[str, Model]:
        answers = {
            name: [self._answers(entry, claim.task) for entry in entries]
            for name, entries in found.items()
        }
        questions = sorted({q for each in answers.values() for one in each for q in one})
        for name, entries in found.items():
            seeds = {entry.seed for entry in entries}
            if seeds != {None} and seeds != set(self.study.seeds):
                raise UserError(f"claim {claim.name!r}: seeds of {name!r} are missing or too many")
        return {
            name: Model(
                name,
                tuple(entry.seed for entry in entries),
                np.array([[one.get(q, np.nan) for q in questions] for one in answers[name]]),
            )
            for name, entries in found.items()
        }

    def _answers(self, entry: NodeEntry, task: str) -> dict[str, float]:
        """Question -> share of its graded answers that are correct; read once."""
        if (entry.key, task) not in self._read:
            self._read[entry.key, task] = self._read_answers(entry, task)
        return self._read[entry.key, task]

    def _read_answers(self, entry: NodeEntry, task: str) -> dict[str, float]:
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
        folder = self.folder / "tables" / entry.key
        try:
            return read_rows(folder, TABLE_OF[entry.stage], list(columns))
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"the table of {entry.name} cannot be read: {error}") from None
