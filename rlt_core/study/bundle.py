"""A folder that holds all that a study's verdicts rest on, and its check without a store.

study.toml, frozen.json     what was claimed and fixed beforehand
nodes.json                  which table is whose
tables/{key}/*.parquet      graded answers, ranks and rewards; no text
verdicts.json, verdicts.md  what follows
bundle.json                 sha256 of every file
"""

import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from rlt_core import __version__
from rlt_core.config import Frozen
from rlt_core.environment import new_folder
from rlt_core.errors import UserError
from rlt_core.rows import read_table, table_files, write_table
from rlt_core.sql.schemas import TABLES
from rlt_core.store import Ref, Store
from rlt_core.store.files import sha256_of, tree
from rlt_core.study.claims import Study, load_study
from rlt_core.study.evidence import COLUMNS, TABLE_OF, Catalogue, Evidence, NodeEntry
from rlt_core.study.freeze import Freeze, Resolved, frozen_path, read_json, rules_sha256
from rlt_core.study.show import markdown
from rlt_core.study.verdicts import Verdict, judge

INDEX = "bundle.json"
OWN = (INDEX, "study.toml", "frozen.json", "nodes.json", "verdicts.json", "verdicts.md")
TOLERANCE = 1e-6
"""Numbers that agree to this, relative or absolute, are equal: machines round differently."""


class Judgement(Frozen):
    """The content of `verdicts.json`."""

    rules_sha256: str
    """Digest of the rules by which it was judged; the freeze has the one of its time."""
    version: str
    """Version of the package that judged."""
    verdicts: tuple[Verdict, ...]


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
    with new_folder(folder) as staged:
        verdicts = _write(resolved, store, staged)
        shutil.rmtree(folder, ignore_errors=True)
    return verdicts


def _write(resolved: Resolved, store: Store, folder: Path) -> list[Verdict]:
    study, refs = resolved.study, {node.key: node.ref for node in resolved.nodes}
    shutil.copyfile(resolved.path, folder / "study.toml")
    shutil.copyfile(frozen_path(resolved.path), folder / "frozen.json")
    for entry in resolved.needed:
        if entry.stage in TABLE_OF:
            _copy_table(store, refs[entry.key], entry, folder)
    _write_json(folder / "nodes.json", resolved.needed)
    verdicts = judge(study, Evidence(folder, Catalogue(resolved.needed), study))
    rules = rules_sha256()
    judgement = Judgement(rules_sha256=rules, version=__version__, verdicts=tuple(verdicts))
    _write_json(folder / "verdicts.json", judgement)
    text = markdown(study, read_json(folder / "frozen.json", Freeze), verdicts, rules)
    (folder / "verdicts.md").write_text(text, encoding="utf-8")
    files = {path: sha256_of(folder / path) for path in tree(folder)}
    _write_json(folder / INDEX, {"files": files})
    return verdicts


def _write_json(path: Path, content: Any) -> None:
    path.write_bytes(to_json(content, indent=1, inf_nan_mode="null") + b"\n")


def _copy_table(store: Store, ref: Ref, entry: NodeEntry, folder: Path) -> None:
    manifest = store.manifest(ref.kind, ref.key)
    if manifest is None:
        raise UserError(f"{entry.name} ({entry.key}) is not in {store}; run the study")
    table = TABLE_OF[entry.stage]
    columns = COLUMNS[table]
    files = table_files(store.intact(manifest, ".parquet"), table)
    rows = read_table(files, columns=columns, schema=TABLES[table]).select(columns)
    path = folder / "tables" / entry.key / f"{table}.parquet"
    write_table(path, rows.replace_schema_metadata(None))


# ---------------------------------------------------------------- verifying
class Verified(Frozen):
    """The result of a check."""

    freeze: Freeze
    verdicts: tuple[Verdict, ...]
    """Recomputed; empty if the files are not those of the bundle, or the rules are others."""
    problems: tuple[str, ...]
    """One line each; empty: all agrees."""


def verify(folder: Path) -> Verified:
    """Check a bundle's files, its study against its freeze, and recompute every verdict from the
    tables; no store, no model. Raises UserError for a folder that is no whole bundle."""
    if missing := [name for name in OWN if not (folder / name).is_file()]:
        raise UserError(f"{folder}: {', '.join(missing)} is missing: no whole bundle")
    study, frozen = load_study(folder / "study.toml"), read_json(folder / "frozen.json", Freeze)
    entries = read_json(folder / "nodes.json", list[NodeEntry])
    stored = read_json(folder / "verdicts.json", Judgement)
    problems = [*_file_problems(folder), *_node_problems(study, frozen, entries)]
    if frozen.study_sha256 != sha256_of(folder / "study.toml"):
        problems.append("study.toml is not what was frozen (sha256 differs from frozen.json)")
    if stored.rules_sha256 != rules_sha256():
        problems.append(
            f"judged by the rules {stored.rules_sha256[:12]} of version {stored.version}; these "
            f"are {rules_sha256()[:12]} of version {__version__}: to recompute, check out commit "
            f"{frozen.git_commit or '(unknown)'}"
        )
    if problems:
        return Verified(freeze=frozen, verdicts=(), problems=tuple(problems))
    try:
        verdicts = tuple(judge(study, Evidence(folder, Catalogue(entries), study)))
    except (ArithmeticError, TypeError, ValueError) as error:  # rows without an id, say
        raise UserError(f"{folder}: its tables give no verdict: {error}") from None
    problems += _verdict_problems(stored.verdicts, verdicts)
    text = markdown(study, frozen, stored.verdicts, stored.rules_sha256)
    if text.encode() != (folder / "verdicts.md").read_bytes():
        problems.append("verdicts.md does not say what verdicts.json says")
    return Verified(freeze=frozen, verdicts=verdicts, problems=tuple(problems))


def _file_problems(folder: Path) -> Iterator[str]:
    files = read_json(folder / INDEX, dict[str, dict[str, str]]).get("files", {})
    found = tree(folder).keys() - {INDEX}
    for name in sorted(found | files.keys()):
        if name not in found:
            yield f"{name}: missing"
        elif name not in files:
            yield f"{name}: not part of the bundle"
        elif sha256_of(folder / name) != files[name]:
            yield f"{name}: altered (sha256 differs from {INDEX})"


def _node_problems(study: Study, frozen: Freeze, entries: list[NodeEntry]) -> Iterator[str]:
    """Nodes that were not frozen, and evaluations of the claims' models that were left out."""
    fixed = {key: NodeEntry.parse(key, name, {}) for key, name in frozen.nodes.items()}
    for entry in entries:
        known = fixed.get(entry.key) == entry.model_copy(update={"inputs": {}})
        if not known or not fixed.keys() >= set(entry.inputs.values()):
            yield f"nodes.json: {entry.name} ({entry.key}) or its input is not in the frozen graph"
    given = {entry.key for entry in entries}
    for entry in Catalogue(fixed.values()).needed(study.claims):
        if entry.key not in given:
            yield f"nodes.json: {entry.name} ({entry.key}) was frozen and is left out"


def _verdict_problems(stored: Iterable[Verdict], found: Iterable[Verdict]) -> Iterator[str]:
    """The fields in which verdicts differ from those that the tables give."""
    before, now = ({one.claim: one.model_dump(mode="json") for one in each}
                   for each in (stored, found))  # fmt: skip
    for name in dict.fromkeys([*before, *now]):
        if name not in before or name not in now:
            what = "has no verdict" if name in now else "is not in the study"
            yield f"verdicts.json: claim {name!r} {what}"
            continue
        for field, new in now[name].items():
            if not _equal(old := before[name][field], new):
                said = f"verdicts.json says {old!r:.80}, the tables say {new!r:.80}"
                yield f"claim {name!r}: {field}: {said}"


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return isinstance(other, dict) and _equal([*one.items()], [*other.items()])
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(one == other)
