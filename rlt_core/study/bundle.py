"""A folder that holds all that a study's verdicts rest on, and its check without a store.

study.toml, frozen.json     what was claimed and fixed beforehand
nodes.json                  which table is whose
tables/{key}/*.parquet      graded answers, ranks and rewards; no text
verdicts.json, verdicts.md  what follows
bundle.json                 sha256 of every file
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from rlt_core import __version__
from rlt_core.config import Frozen
from rlt_core.errors import UserError
from rlt_core.rows import table_files, write_table
from rlt_core.schemas import TABLES
from rlt_core.store import Ref, Store
from rlt_core.store.files import local_tree, sha256_of
from rlt_core.study.claims import Study, load_study
from rlt_core.study.evidence import COLUMNS, TABLE_OF, Catalogue, Evidence, NodeEntry
from rlt_core.study.freeze import Freeze, Resolved, frozen_path, read_freeze, rules_sha256
from rlt_core.study.show import markdown
from rlt_core.study.verdicts import Verdict, judge

INDEX = "bundle.json"
OWN = ("study.toml", "frozen.json", "nodes.json", "verdicts.json", "verdicts.md")
TOLERANCE = 1e-6
"""Numbers that agree to this, relative or absolute, are equal: machines round differently."""
NAME = re.compile(r"(?P<stage>[a-z-]+)(?:\[(?P<variant>.*)\])?(?:@(?P<seed>-?\d+))?")
"""`stage[variant]@seed`."""
Shape = TypeVar("Shape")


class Judgement(Frozen):
    """`verdicts.json`."""

    rules_sha256: str
    """Of the rules by which it was judged; the freeze has those of its time."""
    version: str
    """Of the package that judged."""
    verdicts: tuple[Verdict, ...]


class Index(Frozen):
    """`bundle.json`."""

    files: dict[str, str]
    """Path in the bundle -> sha256."""


# ---------------------------------------------------------------- writing
def require_place(folder: Path, frozen: Path) -> None:
    """Raises UserError, before the work, for a folder that is not this study's to replace."""
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / INDEX).is_file()):
        raise UserError(f"--bundle {folder}: this is no bundle; name a folder that is empty or new")
    before = folder / "frozen.json"
    if before.is_file() and before.read_bytes() != frozen.read_bytes():
        raise UserError(f"--bundle {folder}: this is the bundle of another freeze; name another")


def write_bundle(resolved: Resolved, store: Store, folder: Path) -> list[Verdict]:
    """Gather the tables of a study that has run, judge from them, and write the bundle; one of
    the same freeze is replaced. Raises UserError if something was not computed."""
    made = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        verdicts = _write(resolved, store, made)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return verdicts


def _write(resolved: Resolved, store: Store, folder: Path) -> list[Verdict]:
    shutil.copyfile(resolved.path, folder / "study.toml")
    shutil.copyfile(frozen_path(resolved.path), folder / "frozen.json")
    refs = {node.key: node.ref for node in resolved.nodes}
    for entry in resolved.needed:
        if entry.stage in TABLE_OF:
            _copy_table(store, refs[entry.key], entry, folder)
    nodes = [entry.model_dump() for entry in resolved.needed]
    (folder / "nodes.json").write_text(json.dumps(nodes, indent=1) + "\n", encoding="utf-8")
    evidence = Evidence(folder, Catalogue(resolved.needed), resolved.study)
    verdicts = judge(resolved.study, evidence)
    frozen = read_freeze(folder / "frozen.json")
    judgement = Judgement(
        rules_sha256=rules_sha256(), version=resolved.digest().version, verdicts=tuple(verdicts)
    )
    (folder / "verdicts.json").write_text(
        judgement.model_dump_json(indent=1) + "\n", encoding="utf-8"
    )
    (folder / "verdicts.md").write_text(_said(resolved.study, frozen, judgement), encoding="utf-8")
    files = {str(path.relative_to(folder)): sha256_of(path) for path in local_tree(folder)}
    (folder / INDEX).write_text(Index(files=files).model_dump_json(indent=1) + "\n")
    return verdicts


def _copy_table(store: Store, ref: Ref, entry: NodeEntry, folder: Path) -> None:
    manifest = store.manifest(ref.kind, ref.key)
    if manifest is None:
        raise UserError(f"{entry.name} ({entry.key}) is not in {store}; run the study")
    table = TABLE_OF[entry.stage]
    files = table_files(store.intact(manifest, ".parquet"), table)
    parts = [
        pq.read_table(file, columns=COLUMNS[table], schema=TABLES[table]).select(COLUMNS[table])
        for file in files
    ]
    path = folder / "tables" / entry.key / f"{table}.parquet"
    write_table(path, pa.concat_tables(parts).replace_schema_metadata(None))


def _said(study: Study, frozen: Freeze, judgement: Judgement) -> str:
    as_frozen = judgement.rules_sha256 == frozen.rules_sha256
    return markdown(study, frozen, judgement.verdicts, as_frozen)


# ---------------------------------------------------------------- verifying
class Verified(Frozen):
    """What a check found."""

    study: Study
    freeze: Freeze
    verdicts: tuple[Verdict, ...]
    """Recomputed; none if the files are not those of the bundle."""
    problems: tuple[str, ...]
    """One line each; none: all agrees."""
    rules: str
    """By which rules it was judged, and whether these are others."""
    same_rules: bool


def verify(folder: Path) -> Verified:
    """Check a bundle's files, its study against its freeze, and recompute every verdict from the
    tables; no store, no model. Raises UserError for a folder that is no whole bundle."""
    index = _read(folder / INDEX, Index)
    problems = list(_file_problems(folder, index))
    if gone := [name for name in OWN if not (folder / name).is_file()]:
        raise UserError(f"{folder}: {', '.join(gone)} is missing: no whole bundle")
    study = load_study(folder / "study.toml")
    frozen = read_freeze(folder / "frozen.json")
    if frozen.study_sha256 != sha256_of(folder / "study.toml"):
        problems.append("study.toml is not what was frozen (sha256 differs from frozen.json)")
    entries = _read(folder / "nodes.json", list[NodeEntry])
    problems += _node_problems(study, frozen, entries)
    judgement = _read(folder / "verdicts.json", Judgement)
    same_rules = judgement.rules_sha256 == rules_sha256()
    verdicts: tuple[Verdict, ...] = ()
    if not problems:
        verdicts = tuple(judge(study, Evidence(folder, Catalogue(entries), study)))
        problems += _verdict_problems(judgement.verdicts, verdicts, same_rules)
        said = (folder / "verdicts.md").read_text(encoding="utf-8")
        if same_rules and said != _said(study, frozen, judgement):
            problems.append("verdicts.md does not say what verdicts.json says")
    return Verified(
        study=study, freeze=frozen, verdicts=verdicts, problems=tuple(problems),
        rules=_rules(judgement, frozen), same_rules=same_rules,
    )  # fmt: skip


def _rules(judgement: Judgement, frozen: Freeze) -> str:
    """By which rules a bundle was judged, and where to find them if they are not these."""
    known = [f"judged by the rules {judgement.rules_sha256[:12]} of version {judgement.version}"]
    as_frozen = judgement.rules_sha256 == frozen.rules_sha256
    known.append("those of the freeze" if as_frozen else "changed after the freeze")
    if judgement.rules_sha256 != rules_sha256():
        known.append(
            f"recomputed by others ({rules_sha256()[:12]} of version {__version__}), so that "
            "verdicts may differ"
        )
        if as_frozen and frozen.git_commit:
            known.append(f"to recompute by its own rules, check out commit {frozen.git_commit}")
    return "; ".join(known)


def _read(file: Path, shape: type[Shape]) -> Shape:
    try:
        return TypeAdapter(shape).validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}: no whole bundle") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise UserError(f"{file}: {where}: {first['msg']}") from None


def _file_problems(folder: Path, index: Index) -> Iterator[str]:
    there = {str(path.relative_to(folder)) for path in local_tree(folder)} - {INDEX}
    for name, sha256 in index.files.items():
        if name not in there:
            yield f"{name}: missing"
        elif sha256_of(folder / name) != sha256:
            yield f"{name}: altered (sha256 differs from {INDEX})"
    for name in sorted(there - set(index.files)):
        yield f"{name}: not part of the bundle"


def _node_problems(study: Study, frozen: Freeze, entries: list[NodeEntry]) -> Iterator[str]:
    """Nodes that were not frozen, and evaluations of the claims' models that were left out."""
    given = {entry.key for entry in entries}
    for entry in entries:
        if frozen.nodes.get(entry.key) != entry.name or entry.name != _name(entry):
            yield f"nodes.json: {entry.name} ({entry.key}) is not in the frozen graph"
        for name, key in entry.inputs.items():
            if key not in frozen.nodes:
                yield f"nodes.json: {entry.name} reads {name} {key}, which is not frozen"
    fixed = Catalogue(_parsed(key, name) for key, name in frozen.nodes.items())
    for entry in fixed.needed(study.claims):
        if entry.key not in given:
            yield f"nodes.json: {entry.name} ({entry.key}) was frozen and is left out"


def _name(entry: NodeEntry) -> str:
    label = f"{entry.stage}[{entry.variant}]" if entry.variant else entry.stage
    return label if entry.seed is None else f"{label}@{entry.seed}"


def _parsed(key: str, name: str) -> NodeEntry:
    """What the name of a node says of it."""
    match = NAME.fullmatch(name)
    if match is None:
        raise UserError(f"frozen.json: nodes: {name!r} is no name of a node")
    seed = int(match["seed"]) if match["seed"] else None
    return NodeEntry(
        name=name, key=key, stage=match["stage"], variant=match["variant"] or "", seed=seed,
        inputs={},
    )  # fmt: skip


def _verdict_problems(
    stored: Iterable[Verdict], found: Iterable[Verdict], same_rules: bool
) -> Iterator[str]:
    """The fields in which verdicts differ from those that the tables give; other rules may have
    left out fields that there are now."""
    before, now = ({one.claim: one for one in each} for each in (stored, found))
    for name in dict.fromkeys([*before, *now]):
        if name not in before or name not in now:
            what = "has no verdict" if name in now else "is not in the study"
            yield f"verdicts.json: claim {name!r} {what}"
            continue
        old, new = before[name].model_dump(mode="json"), now[name].model_dump(mode="json")
        stored_fields = before[name].model_fields_set
        for field in old:
            if (same_rules or field in stored_fields) and not _equal(old[field], new[field]):
                yield (
                    f"claim {name!r}: {field}: verdicts.json says {_short(old[field])}, the tables "
                    f"say {_short(new[field])}"
                )


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_equal(*pair) for pair in pairs)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(one == other)


def _short(value: Any) -> str:
    said = f"{value:.6g}" if isinstance(value, float) else json.dumps(value)
    return said if len(said) <= 80 else f"{said[:77]}…"
