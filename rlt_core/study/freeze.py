"""A study is frozen before its seeds run: its file, its config and the keys of its graph.

The digests are in a file beside the study's, to be committed with it. The graph's reports are left
out: no verdict rests on them.
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from rlt_core import __version__
from rlt_core.checkout import git_commit
from rlt_core.config import Config, Frozen
from rlt_core.errors import UserError
from rlt_core.experiments import targets
from rlt_core.graph import Node, upstream
from rlt_core.overrides import load_config
from rlt_core.stages import EvaluationStageConfig
from rlt_core.store import Store
from rlt_core.store.files import reason, sha256_of
from rlt_core.study.claims import RatioClaim, Study, load_study
from rlt_core.study.evidence import Catalogue, NodeEntry

PACKAGE = Path(__file__).parent.parent
RULES = (
    "study/claims.py", "study/evidence.py", "study/verdicts.py", "evaluation/crossed.py",
    "evaluation/comparisons.py", "evaluation/intervals.py", "ranking.py",
)  # fmt: skip
"""Sources of the rules by which tables become verdicts."""
NAMES_SHOWN = 3
Shape = TypeVar("Shape")


class Freeze(Frozen):
    """The content of a `.frozen.json`."""

    study: str
    """Name of the study."""
    study_sha256: str
    """Digest of the study's file."""
    config_sha256: str
    """Digest of the resolved config, without what is never hashed."""
    nodes: dict[str, str]
    """Key -> name of every node."""
    rules_sha256: str
    """Digest of the sources of statistics and verdicts."""
    version: str
    """Version of this package."""
    git_commit: str | None
    """Commit of the source tree; `-dirty` where files differed from it."""
    frozen_at: datetime


@dataclass(frozen=True)
class Resolved:
    """A study with its config and graph, as this version and its data give them."""

    path: Path
    study: Study
    config: Config
    nodes: list[Node]
    """The union of the experiments' graphs, inputs first; no reports."""
    needed: list[NodeEntry]
    """The nodes that verdicts read."""

    def digest(self) -> Freeze:
        """The freeze that would be written now."""
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
    """Read a study file and plan its graph. Raises UserError, also for a claim that cannot be
    decided by the evaluations of the graph."""
    study = load_study(path)
    config = load_config(study.profile, study.overrides)
    reports = [node for name in study.experiments for node in targets(name, config)]
    nodes = [node for node in upstream(reports) if node.stage.name != "report"]
    by_key = {node.key: node for node in nodes}
    catalogue = Catalogue(
        NodeEntry.parse(node.key, node.name, {name: one.key for name, one in node.inputs.items()})
        for node in nodes
    )
    for claim in study.claims:
        for variant, entries in catalogue.models(claim).items():
            stage = by_key[entries[0].key].config
            assert isinstance(stage, EvaluationStageConfig)
            if claim.task not in (tasks := stage.evaluation.tasks):
                raise UserError(
                    f"claim {claim.name!r}: task: {variant!r} is not tested on {claim.task!r} "
                    f"but on {', '.join(tasks)}"
                )
            if isinstance(claim, RatioClaim) and variant != claim.base and entries[0].seed is None:
                raise UserError(  # `gain_ratio` would take the models' seeds as they are
                    f"claim {claim.name!r}: {variant!r} has no training seeds; a ratio needs them "
                    "of ours and theirs"
                )
    return Resolved(path, study, config, nodes, catalogue.needed(study.claims))


def rules_sha256() -> str:
    """Digest of the sources that turn tables into verdicts."""
    digests = "\n".join(f"{sha256_of(PACKAGE / name)} {name}" for name in RULES)
    return hashlib.sha256(digests.encode()).hexdigest()


# ---------------------------------------------------------------- the file
def frozen_path(path: Path) -> Path:
    """The freeze of a study: `paper.frozen.json` beside `paper.toml`."""
    return path.with_suffix(".frozen.json")


def read_json(path: Path, shape: type[Shape]) -> Shape:
    """A JSON file of this shape. Raises UserError naming the file and the field."""
    try:
        return TypeAdapter(shape).validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except ValidationError as error:
        raise UserError(f"{path}: {reason(error)}") from None


def freeze(path: Path, store: Store) -> tuple[Freeze, bool]:
    """Write a study's freeze; returns it, and whether it is new.

    Raises UserError if it was frozen with another content, or if one of its seeds has run in the
    store: its claims could then have been chosen by the results.
    """
    resolved = resolve(path)
    digest, file = resolved.digest(), frozen_path(path)
    if file.exists():
        before = read_json(file, Freeze)
        if found := changes(before, digest):
            raise UserError(
                f"{file} is the freeze of something else ({'; '.join(found)}). A changed study "
                "needs seeds that nothing was seen of: give it some and another file name, or "
                "delete the freeze knowingly"
            )
        return before, False
    # Nodes of this study, and whatever its profile made from the seeds with other settings.
    study = resolved.study
    ran = [
        (one.seed, f"{one.label}@{one.seed}")
        for one in store.manifests()
        if one.seed in study.seeds and (one.profile == study.profile or one.ref.key in digest.nodes)
    ]
    if ran:
        seeds = ", ".join(str(seed) for seed in study.seeds if seed in dict(ran))
        raise UserError(
            f"{path}: seeds {seeds} were run already in {store} "
            f"({_some([name for _, name in ran])}); a study is frozen before its seeds run: "
            "choose others"
        )
    file.write_text(digest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return digest, True


def changes(before: Freeze, now: Freeze) -> list[str]:
    """What differs from the freeze: the file, the config, the code; empty if nothing does."""
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
    """A study that is as it was frozen. Raises UserError naming the differences."""
    resolved = resolve(path)
    file = frozen_path(path)
    if not file.exists():
        raise UserError(f"{path} is not frozen; `rlt study freeze {path}` comes before it runs")
    before = read_json(file, Freeze)
    if found := changes(before, resolved.digest()):
        raise UserError(
            f"{path} is not what was frozen on {before.frozen_at:%Y-%m-%d}: {'; '.join(found)}. "
            "Go back to it, or write a new study on untouched seeds"
        )
    return resolved, before
