"""Cards (README.md) of exported artifacts: origin, reward, evaluation, licences, commands.

Everything in a card is read from the store's manifests and tables.
"""

import importlib.metadata
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlt_core.config import Config
from rlt_core.data.sources import GENERATED
from rlt_core.errors import UserError
from rlt_core.evaluation.benchmarks import BENCHMARKS
from rlt_core.evaluation.intervals import Estimate
from rlt_core.experiments import targets
from rlt_core.graph import flatten, upstream
from rlt_core.hf_hub import CARD, card_licence
from rlt_core.profiles import PROFILES
from rlt_core.report.texts import Markdown, cell, code, codes, fenced, number, percent, table
from rlt_core.rows import read_rows
from rlt_core.stages import STAGES
from rlt_core.store import Manifest, Store
from rlt_core.store.files import Damaged
from rlt_core.store.transfer import with_inputs

PAPER = Markdown("[Reinforcement-Learned Teachers](https://arxiv.org/abs/2506.08388)")
TAGS = ["reinforcement-learned-teachers", "distillation", "reasoning"]
LICENCE = re.compile(
    r"(apache|artistic|afl|agpl|gpl|lgpl|mpl|bsl|cc0|cdla-(permissive|sharing))-\d\.\d"
    r"|cc-by(-nc)?(-nd|-sa)?-\d\.\d|bsd(-[23]-clause)?|bigscience-(openrail-m|bloom-rail-1\.0)"
    r"|gpl|lgpl|cc|mit|isc|gfdl|gemma|llama(2|3|3\.[1-3])|ms-pl|odbl|odc-by|openrail(\+\+)?|pddl"
    r"|unlicense|wtfpl|zlib"
)
"""Identifiers that the hub accepts as `license`."""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
UNKNOWN, OWN = "unknown", "made by the pipeline"


class Origin(NamedTuple):
    """A model or data set that an artifact was made from."""

    kind: str
    """`model` or `data set`."""
    name: str
    """`hub:org/name` for one of the hub."""
    licence: str
    """As its card, package or rows name it."""


@dataclass(frozen=True)
class CardFacts:
    """What is exported."""

    manifest: Manifest
    place: str
    """Folder or repository to load it from."""
    exported_by: str
    """The command."""
    scores: Manifest | None = None
    """Scores of exported traces."""
    splits: Mapping[str, int] = field(default_factory=dict)
    """Split -> rows of a data set; empty for a model."""
    columns: Sequence[str] = ()
    means: Mapping[str, float] = field(default_factory=dict)
    """Means over the rows of a data set."""

    @property
    def name(self) -> str:
        """The artifact's name, as the run gave it."""
        return f"{self.manifest.profile}/{_title(self.manifest)}"


def render_card(store: Store, facts: CardFacts) -> str:
    manifest, is_model = facts.manifest, not facts.splits
    lineage = _lineage(store, [manifest, *([facts.scores] if facts.scores else [])])
    found = list(_sources(store, lineage))
    students = [one for one in store.manifests("model") if manifest.ref in one.inputs.values()]
    scores = _evaluations(store, [manifest] if is_model else students)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), finalize=cell, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(code=code, codes=codes, fenced=fenced, number=number, table=table)
    text = environment.get_template("card.md.jinja").render(
        name=facts.name, selected=manifest.stage == "trace-selection", place=facts.place,
        splits=facts.splits, columns=facts.columns,
        paper=PAPER, markdown=Markdown, role=_role(manifest), format=manifest.config.get("format"),
        scores=_score_table(scores), reward=_rewarded([*lineage, facts.scores or manifest]),
        means=facts.means or _training_rewards(manifest),
        sources=[one._asdict() for one in found], nodes=[_node_row(one) for one in lineage],
        gone=with_inputs(store, [manifest])[1],
        commands=f"{_command(store, manifest)}\n{facts.exported_by}",
        finished=f"{manifest.finished_at:%Y-%m-%d}", commit=manifest.git_commit,
        packages=manifest.packages,
    )  # fmt: skip
    fields = _model_fields if is_model else _data_fields
    return f"---\n{fields(facts, found, scores)}\n---\n\n{text.strip()}\n"


# ---------------------------------------------------------------- the front matter
def _model_fields(facts: CardFacts, found: Sequence[Origin], scores: Sequence[Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=BENCHMARKS[row["task"]].repo if row["task"] in BENCHMARKS else row["task"],
            dataset_name=row["task"],
            metric_type="accuracy",
            metric_value=round(100 * row["value"], 1),
            metric_name=f"{row['metric']} in %, 95% interval {100 * row['low']:.1f} to "
            f"{100 * row['high']:.1f}",
        )
        for row in scores
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=_repositories(found, "model")[:1] or None,
        datasets=_repositories(found, "data set") or None,
        tags=TAGS,
        model_name=facts.name,
        eval_results=results or None,
        **_licence_fields(one.licence for one in found if one.kind == "model"),
    ).to_yaml()


def _data_fields(facts: CardFacts, found: Sequence[Origin], scores: Sequence[Any]) -> str:
    from huggingface_hub import DatasetCardData

    rows = sum(facts.splits.values())
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in facts.splits]
    return DatasetCardData(
        pretty_name=facts.name,
        task_categories=["text-generation"],
        size_categories=next((size for most, size in SIZES if rows < most), "1M<n<10M"),
        annotations_creators="machine-generated",
        source_datasets=_repositories(found, "data set") or ["original"],
        tags=TAGS,
        configs=[{"config_name": "default", "data_files": files}],
        **_licence_fields(one.licence for one in found),
    ).to_yaml()


def _repositories(found: Iterable[Origin], kind: str) -> list[str]:
    """Return the hub's repositories among the sources."""
    names = (one.name for one in found if one.kind == kind and one.name.startswith("hub:"))
    return list(dict.fromkeys(name.removeprefix("hub:").partition("@")[0] for name in names))


def _licence_fields(licences: Iterable[str]) -> dict[str, Any]:
    """Return the fields for the sources' licences; none where one of them is not known."""
    named = [one for text in licences if text != OWN for one in text.split(", ")]
    if not named or UNKNOWN in named:
        return {}
    words = (re.sub(r"\b(the|licen[cs]e)\b", "", one.lower()).split() for one in named)
    ids = sorted({"-".join(each) for each in words})
    if all(LICENCE.fullmatch(one) for one in ids):
        return {"license": ids[0] if len(ids) == 1 else ids}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.+]+", "-", "-".join(ids))}


# ---------------------------------------------------------------- what the store says
def _lineage(store: Store, chosen: Sequence[Manifest]) -> list[Manifest]:
    """Return artifacts and all that they were made from and the store still has, inputs first."""
    found = {one.ref.key: one for one in with_inputs(store, chosen)[0]}
    for one in list(found.values()):
        kind, _, key = str(one.config.get("imported")).partition(":")
        if kind == "artifact":
            with suppress(UserError, Damaged):
                found = {each.ref.key: each for each in _lineage(store, [store.find(key)])} | found
    return list(found.values())


def _sources(store: Store, lineage: Iterable[Manifest]) -> Iterator[Origin]:
    """Yield the models and data sets at the beginning of the lineage, each once."""
    found: dict[Origin, None] = {}
    for one in lineage:
        imported = one.config.get("imported") or ""
        if one.stage == "base-model" and not imported.startswith("artifact:"):
            found[_model_source(imported)] = None
        chat = one.config.get("teacher") or one.config.get("refinement") or {}
        if "model" in chat:
            found[Origin("model", f"endpoint:{chat['model']}", UNKNOWN)] = None
        if "questions" in one.tables:
            rows = read_rows(store.intact(one, ".parquet"), "questions", ["source", "licence"])
            for name, licence in sorted({(row["source"], row["licence"] or "") for row in rows}):
                found[_data_source(one, name, licence)] = None
    yield from found


def _data_source(made: Manifest, name: str, licence: str) -> Origin:
    data = made.config.get("data") or {}
    origin = data.get("source") or ""
    if origin.startswith("hub:"):
        name = f"{origin}@{data['revision']}"
    return Origin("data set", name, licence or (OWN if origin in GENERATED else UNKNOWN))


def _model_source(imported: str) -> Origin:
    """Return the source of an imported model, or of one that was trained from scratch (empty)."""
    kind, _, rest = imported.partition(":")
    name, _, commit = rest.partition("@" if kind == "hub" else ":")
    licence: str | None = None if imported else OWN
    if kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        card = try_to_load_from_cache(name, CARD, revision=commit)
        licence = card_licence(Path(card).parent) if isinstance(card, str) else None
    elif kind == "package":
        imported = f"package:{name}"
        for package in importlib.metadata.packages_distributions().get(name, []):
            about = importlib.metadata.metadata(package).json
            licence = str(about.get("license_expression") or about.get("license") or "")
    return Origin("model", imported or "trained from scratch", licence or UNKNOWN)


def _evaluations(store: Store, models: Iterable[Manifest]) -> list[dict[str, Any]]:
    """Return the rows of `eval_scores` of these models, by evaluation."""
    refs = {one.ref for one in models}
    made = [one for one in store.manifests("evaluation") if one.inputs.get("model") in refs]
    return [
        row | {"node": _title(one)}
        for one in sorted(made, key=lambda each: (each.label, each.seed or 0))
        for row in read_rows(store.intact(one, ".parquet"), "eval_scores")
        if row["value"] is not None
    ]


def _score_table(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "evaluation": code(row["node"]), "task": row["task"], "metric": row["metric"],
            "% right [95% interval]": percent(
                Estimate(row["value"], row["low"], row["high"], row["questions"])
            ),
            "questions": row["questions"], "completions each": row["samples"],
        }
        for row in rows
    ]  # fmt: skip


def _role(manifest: Manifest) -> str:
    if manifest.stage.startswith("teacher"):
        return "a teacher, which reads a question and its solution and writes the explanation"
    if manifest.stage.startswith("student"):
        return "a student, which reads a question, thinks, and answers"
    return "a base model, which teachers and students start from"


def _rewarded(lineage: Sequence[Manifest]) -> dict[str, Any] | None:
    """Return the reward of the last artifact that was trained or scored by the RLT reward."""
    for one in reversed(lineage):
        spec = one.config.get("reward") or {}
        if "kl_weight" in spec:
            return {"node": _title(one), "spec": {k: v for k, v in spec.items() if v is not None}}
    return None


def _training_rewards(manifest: Manifest) -> dict[str, float]:
    names = ("reward_first", "reward_last")
    return {name: manifest.metrics[name] for name in names if name in manifest.metrics}


def _node_row(one: Manifest) -> dict[str, Any]:
    """Return an artifact with the fields of its config that its stage calls essential."""
    stage = STAGES.get(one.stage)
    names = {*(stage.essentials if stage else ()), "imported", "seed", "revision"}
    leaves = flatten({name: value for name, value in one.config.items() if name != "format"})
    shown = [
        f"{path}={value}"
        for path, value in leaves
        if (path.rpartition(".")[2] in names or ".lora." in path) and value not in (None, {}, [])
    ]
    return {"node": code(_title(one)), "key": code(one.ref.key), "config": ", ".join(shown)}


def _title(one: Manifest) -> str:
    return one.label if one.seed is None else f"{one.label}@{one.seed}"


def _command(store: Store, manifest: Manifest) -> str:
    """Return the command of a run whose config the store has and whose graph has the artifact; the
    profile and the node where there is none."""
    for path in store.files.walk("runs"):
        with suppress(UserError, ValueError, Damaged):
            config = Config.model_validate_json(store.files.read(f"runs/{path}") or b"")
            target, profile = path.rpartition("-")[0], config.profile
            if profile == manifest.profile and profile in PROFILES:
                nodes = upstream(targets(target, config))
                if any(node.ref == manifest.ref for node in nodes):
                    return " ".join(["rlt run", target, "--profile", profile, *_changes(config)])
    return f"# node {_title(manifest)} of profile {manifest.profile}; its run's config is not known"


def _changes(config: Config) -> Iterator[str]:
    """Yield `--set` of every field in which a config differs from its profile; not resources."""
    own, usual = (
        dict(flatten(each.model_dump(mode="json", exclude={"resources", "profile"})))
        for each in (config, PROFILES[config.profile]())
    )
    for name, value in own.items():
        if name not in usual or usual[name] != value:
            said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"--set {shlex.quote(f'{name}={said}')}"
