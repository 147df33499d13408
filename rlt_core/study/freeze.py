"""A study is frozen before its seeds run: its file, its config and the keys of its graph.

The digests stand in a file beside the study's, to be committed with it. The graph's reports are
left out: no verdict rests on them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from rlt_core import __version__
from rlt_core.checkout import git_commit
from rlt_core.config import Config, Frozen
from rlt_core.errors import UserError
from rlt_core.experiments import targets
from rlt_core.graph import Node, upstream
from rlt_core.stages import EvaluationStageConfig
from rlt_core.store import Store
from rlt_core.store.files import sha256_of
from rlt_core.study.claims import Claim, RatioClaim, Study, load_study
from rlt_core.study.evidence import Catalogue, NodeEntry, entry_of

PACKAGE = Path(__file__).parent.parent
RULES = (
    "study/claims.py", "study/evidence.py", "study/verdicts.py", "evaluation/crossed.py",
    "evaluation/comparisons.py", "evaluation/intervals.py", "ranking.py",
)  # fmt: skip
"""Sources of the rules by which tables become verdicts."""
NAMES_SHOWN = 3


class Freeze(Frozen):
    """What was fixed."""

    study: str
    """Its name."""
    study_sha256: str
    """Of the study's file."""
    config_sha256: str
    """Of the resolved config, without what is never hashed."""
    nodes: dict[str, str]
    """Key -> name of every node."""
    rules_sha256: str
    """Of the sources of the statistics and verdicts."""
    version: str
    """Of this package."""
    git_commit: str | None
    """Of the source tree; `-dirty` where files differed from it."""
    frozen_at: datetime

    def fixed(self) -> tuple[object, ...]:
        """What a study must not change afterwards."""
        return self.study_sha256, self.config_sha256, self.nodes


@dataclass(frozen=True)
class Resolved:
    """A study with all that follows from it here and now."""

    path: Path
    study: Study
    config: Config
    nodes: list[Node]
    """The union of the experiments' graphs, inputs first; no reports."""

    @cached_property
    def catalogue(self) -> Catalogue:
        """The nodes by what claims call them."""
        return Catalogue(entry_of(node) for node in self.nodes)

    @cached_property
    def needed(self) -> list[NodeEntry]:
        """What the verdicts read."""
        return self.catalogue.needed(self.study.claims)

    def of_seeds(self) -> list[Node]:
        """The nodes that depend on a seed of the study."""
        found: dict[str, Node] = {}
        for node in self.nodes:
            if node.seed is not None or any(one.key in found for one in node.inputs.values()):
                found[node.key] = node
        return list(found.values())

    def digest(self) -> Freeze:
        """What would be frozen now."""
        config = self.config.model_dump(mode="json", exclude={"resources"})
        canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return Freeze(
            study=self.study.name,
            study_sha256=sha256_of(self.path),
            config_sha256=hashlib.sha256(canonical.encode()).hexdigest(),
            nodes={node.key: node.name for node in self.nodes},
            rules_sha256=rules_sha256(),
            version=__version__,
            git_commit=git_commit(),
            frozen_at=datetime.now(UTC).replace(microsecond=0),
        )


def resolve(path: Path) -> Resolved:
    """A study file with its config and graph; every claim can be decided by what the graph
    evaluates. Raises UserError."""
    study = load_study(path)
    config = study.config()
    reports = [node for name in study.experiments for node in targets(name, config)]
    nodes = [node for node in upstream(reports) if node.stage.name != "report"]
    resolved = Resolved(path, study, config, nodes)
    by_key = {node.key: node for node in nodes}
    for claim in study.claims:
        needed = resolved.catalogue.needed([claim])
        evaluated = [one for one in needed if one.stage == "evaluation"]
        _require_task(claim, (by_key[one.key] for one in evaluated))
        _require_seeds(claim, evaluated)
    return resolved


def _require_task(claim: Claim, evaluations: Iterable[Node]) -> None:
    for node in evaluations:
        assert isinstance(node.config, EvaluationStageConfig)
        tasks = node.config.evaluation.tasks
        if claim.task not in tasks:
            raise UserError(
                f"claim {claim.name!r}: task: {node.variant!r} is not tested on {claim.task!r} "
                f"but on {', '.join(tasks)}"
            )


def _require_seeds(claim: Claim, evaluations: list[NodeEntry]) -> None:
    """`gain_ratio` takes checkpoints as they are where a model has no seeds."""
    if not isinstance(claim, RatioClaim):
        return
    for one in evaluations:
        if one.seed is None and one.variant != claim.base:
            raise UserError(
                f"claim {claim.name!r}: {one.variant!r} has no training seeds; a ratio needs them "
                "of ours and theirs"
            )


def rules_sha256() -> str:
    """Of the sources that turn tables into verdicts."""
    digests = "\n".join(f"{sha256_of(PACKAGE / name)} {name}" for name in RULES)
    return hashlib.sha256(digests.encode()).hexdigest()


# ---------------------------------------------------------------- the file
def frozen_path(path: Path) -> Path:
    """Where a study's freeze lies: `paper.frozen.json` beside `paper.toml`."""
    return path.with_suffix(".frozen.json")


def read_freeze(path: Path) -> Freeze:
    """A freeze from its file. Raises UserError."""
    try:
        return Freeze.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise UserError(f"{path}: {where}: {first['msg']}") from None


def freeze(path: Path, store: Store) -> tuple[Freeze, bool]:
    """Write a study's freeze; returns it, and whether it is new.

    Raises UserError if it was frozen with another content, or if one of its seeds has run in the
    store: then what is claimed could have been chosen by what came out.
    """
    resolved = resolve(path)
    digest, file = resolved.digest(), frozen_path(path)
    if file.exists():
        before = read_freeze(file)
        if before.fixed() == digest.fixed():
            return before, False
        raise UserError(
            f"{file} is the freeze of something else ({'; '.join(changes(before, digest))}). A "
            "changed study needs seeds that nothing was seen of: give it some and another file "
            "name, or delete the freeze knowingly"
        )
    if ran := _ran(resolved, store):
        seeds = ", ".join(str(seed) for seed in sorted({seed for seed, _ in ran}))
        names = [name for _, name in ran]
        raise UserError(
            f"{path}: seeds {seeds} were run already in {store} ({_some(names)}); a study is "
            "frozen before its seeds run: choose others"
        )
    file.write_text(digest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return digest, True


def _ran(resolved: Resolved, store: Store) -> list[tuple[int, str]]:
    """(seed, name) of what the store has of the study's seeds: its own nodes, and whatever its
    profile made from them with other settings."""
    study = resolved.study
    own = store.manifests_of(node.ref for node in resolved.of_seeds())
    return [
        (one.seed, f"{one.label}@{one.seed}")
        for one in store.manifests()
        if one.seed is not None
        and one.seed in study.seeds
        and (one.profile == study.profile or one.ref.key in own)
    ]


def changes(before: Freeze, now: Freeze) -> list[str]:
    """What differs from the freeze: the file, the config, the code; none if nothing does."""
    found = []
    if before.study_sha256 != now.study_sha256:
        found.append("the study's file was changed")
    if before.config_sha256 != now.config_sha256:
        found.append("the config differs (profile and set lines)")
    if before.nodes != now.nodes:
        names = [name for key, name in now.nodes.items() if key not in before.nodes]
        names = names or [name for key, name in before.nodes.items() if key not in now.nodes]
        found.append(
            f"the code or the data changed: {len(names)} of {len(now.nodes)} nodes have other "
            f"keys ({_some(names)})"
        )
    return found


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return f"{shown}, and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else shown


def require_frozen(path: Path) -> tuple[Resolved, Freeze]:
    """A study that is what was frozen. Raises UserError naming what is not."""
    resolved = resolve(path)
    file = frozen_path(path)
    if not file.exists():
        raise UserError(f"{path} is not frozen; `rlt study freeze {path}` comes before it runs")
    before = read_freeze(file)
    if found := changes(before, resolved.digest()):
        raise UserError(
            f"{path} is not what was frozen on {before.frozen_at:%Y-%m-%d}: {'; '.join(found)}. "
            "Go back to it, or write a new study on untouched seeds"
        )
    return resolved, before
