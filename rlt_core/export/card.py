"""Cards (README.md) of exported artifacts: origin, reward, evaluation, licences, commands.

Everything in a card is read from the store's manifests and tables.
"""

import importlib.metadata
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from rlt_core.config import Config
from rlt_core.data.sources import GENERATED
from rlt_core.errors import UserError
from rlt_core.evaluation.intervals import Estimate
from rlt_core.experiments import targets
from rlt_core.graph import flatten, upstream
from rlt_core.hf_hub import CARD, card_licence
from rlt_core.profiles import PROFILES
from rlt_core.report.texts import Markdown, code, environment, percent
from rlt_core.rows import read_rows
from rlt_core.stages import STAGES
from rlt_core.store import Manifest, Store
from rlt_core.store.files import Damaged
from rlt_core.store.transfer import with_inputs

PAPER = Markdown("[Reinforcement-Learned Teachers](https://arxiv.org/abs/2506.08388)")
TAGS = ["reinforcement-learned-teachers", "distillation", "reasoning"]
LICENCES = (
    "apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-sa-4.0",
    "cc0-1.0", "gemma", "llama3", "llama3.1", "llama3.2", "llama3.3", "mit", "odc-by",
)  # fmt: skip
"""The usual ones of the identifiers that the hub accepts as `license`."""
UNKNOWN, OWN = "unknown", "made by the pipeline"


class Origin(NamedTuple):
    """A model or data set that an artifact was made from."""

    kind: str
    """`model` or `data set`."""
    name: str
    """`hub:org/name` for one of the hub."""
    licence: str
    """As its card, package or rows name it."""


class Exported(NamedTuple):
    """What was written: the splits, columns and means of a data set; nothing of a model."""

    splits: Mapping[str, int] = {}
    """Split -> rows."""
    columns: Sequence[str] = ()
    means: Mapping[str, float] = {}
    """Means over the rows."""


def render_card(
    store: Store,
    manifest: Manifest,
    scores: Manifest | None,
    written: Exported,
    place: str,
    exported_by: str,
) -> str:
    """Return the card. `scores`: of exported traces; `place`: folder or repository to load from;
    `exported_by`: the command."""
    is_model, name = not written.splits, f"{manifest.profile}/{manifest.name}"
    lineage = _lineage(store, [manifest, *([scores] if scores else [])])
    found = list(_sources(store, lineage))
    students = [one for one in store.manifests("model") if manifest.ref in one.inputs.values()]
    of_training = {
        name: manifest.metrics[name]
        for name in ("reward_first", "reward_last")
        if name in manifest.metrics
    }
    text = environment(Path(__file__).parent).get_template("card.md.jinja").render(
        name=name, selected=manifest.stage == "trace-selection", place=place,
        splits=written.splits, columns=written.columns,
        paper=PAPER, role=_role(manifest), format=manifest.config.get("format"),
        scores=_score_table(store, [manifest] if is_model else students),
        reward=_rewarded([*lineage, scores or manifest]), means=written.means or of_training,
        sources=[one._asdict() for one in found], nodes=[_node_row(one) for one in lineage],
        gone=with_inputs(store, [manifest])[1],
        commands=f"{_command(store, manifest)}\n{exported_by}",
        finished=f"{manifest.finished_at:%Y-%m-%d}", commit=manifest.git_commit,
        packages=manifest.packages,
    )  # fmt: skip
    fields = _front_matter(name, found, written.splits)
    return f"---\n{fields}\n---\n\n{text.strip()}\n"


# ---------------------------------------------------------------- the front matter
def _front_matter(name: str, found: Sequence[Origin], splits: Mapping[str, int]) -> str:
    """Return the fields by which the hub finds the artifact."""
    from huggingface_hub import DatasetCardData, ModelCardData

    models, data = (
        list(dict.fromkeys(
            one.name.removeprefix("hub:").partition("@")[0]
            for one in found
            if one.kind == kind and one.name.startswith("hub:")
        ))
        for kind in ("model", "data set")
    )  # fmt: skip
    if splits:
        files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
        return DatasetCardData(
            pretty_name=name,
            task_categories=["text-generation"],
            source_datasets=data or ["original"],
            tags=TAGS,
            configs=[{"config_name": "default", "data_files": files}],
            **_licence_fields(one.licence for one in found),
        ).to_yaml()
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=models[:1] or None,
        datasets=data or None,
        tags=TAGS,
        **_licence_fields(one.licence for one in found if one.kind == "model"),
    ).to_yaml()


def _licence_fields(licences: Iterable[str]) -> dict[str, Any]:
    """Return the fields for the sources' licences; none where one of them is not known."""
    named = {one.lower() for text in licences if text != OWN for one in text.split(", ")}
    if not named or UNKNOWN in named:
        return {}
    if named <= set(LICENCES):
        return {"license": sorted(named) if len(named) > 1 else min(named)}
    name = re.sub(r"[^a-z0-9.+]+", "-", "-".join(sorted(named)))
    return {"license": "other", "license_name": name}


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
            data = one.config.get("data") or {}
            origin = data.get("source") or ""
            unnamed = OWN if origin in GENERATED else UNKNOWN
            rows = read_rows(store.intact(one, ".parquet"), "questions", ["source", "licence"])
            for name, licence in sorted({(row["source"], row["licence"] or "") for row in rows}):
                pinned = f"{origin}@{data['revision']}" if origin.startswith("hub:") else name
                found[Origin("data set", pinned, licence or unnamed)] = None
    yield from found


def _model_source(imported: str) -> Origin:
    """Return the source of an imported model, or of one that was trained from scratch (empty)."""
    kind, _, rest = imported.partition(":")
    name, _, commit = rest.partition("@" if kind == "hub" else ":")
    licence: str | None = None if imported else OWN
    if kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        with suppress(ValueError):  # no repository has such a name
            card = try_to_load_from_cache(name, CARD, revision=commit)
            licence = card_licence(Path(card).parent) if isinstance(card, str) else None
    elif kind == "package":
        imported = f"package:{name}"
        for package in importlib.metadata.packages_distributions().get(name, []):
            about = importlib.metadata.metadata(package).json
            licence = str(about.get("license_expression") or about.get("license") or "")
    return Origin("model", imported or "trained from scratch", licence or UNKNOWN)


def _score_table(store: Store, models: Iterable[Manifest]) -> list[dict[str, Any]]:
    """Return the scores of these models, by evaluation."""
    refs = {one.ref for one in models}
    made = [one for one in store.manifests("evaluation") if one.inputs.get("model") in refs]
    return [
        {
            "evaluation": code(one.name), "task": row["task"], "metric": row["metric"],
            "% right [95% interval]": percent(
                Estimate(row["value"], row["low"], row["high"], row["questions"])
            ),
            "questions": row["questions"], "completions each": row["samples"],
        }
        for one in sorted(made, key=lambda each: (each.label, each.seed or 0))
        for row in read_rows(store.intact(one, ".parquet"), "eval_scores")
        if row["value"] is not None
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
        if isinstance(spec, dict) and "kl_weight" in spec:
            return {"node": one.name, "spec": {k: v for k, v in spec.items() if v is not None}}
    return None


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
    return {"node": code(one.name), "key": code(one.ref.key), "config": ", ".join(shown)}


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
    return f"# node {manifest.name} of profile {manifest.profile}; its run's config is not known"


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
