"""`--set a.b=c` and `--config FILE.toml`: a profile with some fields changed, refused with the
nearest names when unknown."""

import json
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rlt_core.config import Config, StageResources
from rlt_core.config.fields import fields
from rlt_core.errors import UserError
from rlt_core.graph import flatten
from rlt_core.names import nearest as nearest
from rlt_core.profiles import PROFILES
from rlt_core.stages import STAGES

ALIASES = {
    "lr": "learning_rate", "bs": "batch_size", "temp": "temperature", "lambda": "kl_weight",
    "max_new_tokens": "max_tokens", "max_length": "max_tokens", "num_generations": "group_size",
    "model": "base_model", "dataset": "data.source", "gradient_accumulation": "micro_batch_size",
}  # fmt: skip
"""What other tools call a field."""
SHORT = {"tracking": "resources.tracking"}
FILES = "evaluation.files."
"""`evaluation.files.NAME` is short for `imports.benchmarks.NAME`, and evaluates it as well."""
KINDS = ("scratch", "hub", "folder", "artifact", "package")
SUGGESTED = 16
"""Fields that an error names at most."""


def nearest_fields(path: str, here: Iterable[str]) -> str:
    """Return a hint for an unknown field: the nearest of its section (`here`), else every field of
    the config whose name is the alias's, contains the name or is close to it."""
    name = path.rpartition(".")[2]
    here = sorted(here)
    wanted = ALIASES.get(name, name)
    if wanted not in here and (close := get_close_matches(name, here, n=1)):
        return f"did you mean {close[0]!r}?"
    leaves = {field.path: field.path.rpartition(".")[2] for field in fields()}
    alike = get_close_matches(wanted, set(leaves.values()), n=1, cutoff=0.75)
    for matches in (
        [one for one in leaves if one == wanted or one.endswith(f".{wanted}")],
        [one for one, leaf in leaves.items() if len(wanted) > 2 and wanted in leaf],
        [one for one, leaf in leaves.items() if leaf in alike],
    ):
        section = path.rpartition(".")[0]
        found = [one for one in matches if section and one.startswith(f"{section}.")] or matches
        if found:
            more = f" and {len(found) - SUGGESTED} more" if len(found) > SUGGESTED else ""
            return f"did you mean {', '.join(found[:SUGGESTED])}{more}?"
    return f"there are: {', '.join(here)}"


def parse_value(text: str) -> Any:
    """Return a JSON text's value (numbers, null, lists), else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def parse_set(assignment: str) -> tuple[str, Any]:
    """Split `a.b=c` into (path, value). Raises UserError."""
    path, equals, value = assignment.partition("=")
    if not equals or not path.strip():
        raise UserError(f"--set {assignment!r}: write it as field.name=value")
    return path.strip(), parse_value(value.strip())


def _assign(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for index, name in enumerate(parents):
        inner = tree.get(name)
        if inner is None and name in tree:
            inner = tree[name] = {}
        if inner is None and (_is_open(parents[:index]) or name in fields_at(parents[:index])):
            inner = tree[name] = {}  # a field that is not dumped while it is empty
        if not isinstance(inner, dict):
            if name in tree:
                raise UserError(f"{path}: {'.'.join(parents[: index + 1])} has no fields")
            raise UserError(f"{path}: unknown field {name!r}; {nearest_fields(name, tree)}")
        tree = inner
    if leaf == "kind":
        tree.clear()
    tree[leaf] = value


def _is_open(parents: list[str]) -> bool:
    """Return whether the user chooses the names below."""
    return parents[:1] in (["imports"], ["trace_sources"]) or parents[:2] == ["resources", "stages"]


def fields_at(location: Sequence[str]) -> list[str]:
    """Return the fields of the config class at a place in the tree."""
    if tuple(location[:2]) == ("resources", "stages"):
        return list(StageResources.model_fields) if len(location) == 3 else []
    depth, paths = len(location), (field.path.split(".") for field in fields())
    found = (
        path[depth]
        for path in paths
        if len(path) > depth
        and all(name in (own, "NAME") for name, own in zip(path, location, strict=False))
    )
    return list(dict.fromkeys(found))


def _message(error: ErrorDetails) -> str:
    names: list[str] = []
    for part in map(str, error["loc"]):  # of a model's source, its kind is no field's name
        if part not in KINDS or "kind" not in fields_at(names):
            names.append(part)
    path = ".".join(names)
    if error["type"] == "extra_forbidden":
        here = fields_at(names[:-1])
        return f"unknown field {path!r}" + (f"; {nearest_fields(path, here)}" if here else "")
    given = error.get("input")
    shown = f" (given: {given!r:.200})" if not isinstance(given, dict) else ""
    problem = error["msg"].removeprefix("Value error, ")
    if error["type"] == "tuple_type":
        problem = f"write a list, as --set '{path}=[…]'"
    elif error["type"] == "model_type" and path:
        first = next(iter(fields_at(names)), "field")
        problem = f"it has fields; set them, as --set {path}.{first}=…"
        if NoneType in get_args(Config.model_fields[path.partition(".")[0]].annotation):
            problem += f"; --set {path}=null leaves it out"
    return f"{path or 'config'}: {problem}{shown}"


def _replaced_lengths(changed: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield `steps` as empty where `epochs` is set, and the reverse: a training has one of them."""
    for path, value in changed.items():
        section, _, name = path.rpartition(".")
        other = {"epochs": "steps", "steps": "epochs"}.get(name, "")
        if value is not None and other in fields_at(section.split(".")):
            yield f"{section}.{other}", None


def _kinds_first(pairs: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Put the kind of a source, which replaces all its fields, before those beside it."""
    ordered: list[tuple[str, Any]] = []
    for path, value in pairs:
        place, beside = len(ordered), path.removesuffix("kind")
        while path.endswith(".kind") and place and ordered[place - 1][0].startswith(beside):
            place -= 1
        theirs = any(name == path for name, _ in ordered[place:])  # the fields of another kind
        ordered.insert(len(ordered) if theirs else place, (path, value))
    return ordered


def read_config(file: Path) -> tuple[str | None, list[str]]:
    """Return the profile that a config file names, if it does, and its fields as `--set`
    assignments. JSON is the whole config of a run, TOML has some fields. Raises UserError."""
    try:
        text = file.read_text()
        if file.suffix == ".json":
            whole = Config.model_validate_json(text).model_dump(mode="json")
            profile = whole.pop("profile")
            return profile, [f"{name}={json.dumps(value)}" for name, value in whole.items()]
        tree = tomllib.loads(text)
    except OSError as error:
        raise UserError(f"--config {file}: {error.strerror}") from None
    except ValidationError as error:
        problems = "; ".join(map(_message, error.errors()))
        raise UserError(f"--config {file}: not the config of a run: {problems}") from None
    except (ValueError, RecursionError) as error:  # not TOML, or not UTF-8
        raise UserError(f"--config {file}: {error}") from None
    profile = tree.pop("profile", None)
    if not isinstance(profile, str | None):
        raise UserError(f"--config {file}: profile: write a name in quotes (given: {profile})")
    leaves = (leaf for leaf in flatten(tree) if leaf[1] != {})  # TOML has empty tables, and dates
    return profile, [f"{path}={json.dumps(value, default=str)}" for path, value in leaves]


def load_config(profile: str, assignments: Iterable[str] = ()) -> Config:
    """Return a profile with `--set` assignments applied.

    Raises UserError for an unknown profile or field (with the nearest name) or a wrong type.
    """
    if profile not in PROFILES:
        raise UserError(f"unknown profile {profile!r}; {nearest(profile, PROFILES)}")
    tree = PROFILES[profile]().model_dump(mode="json")
    pairs = _kinds_first([parse_set(assignment) for assignment in assignments])
    for path, value in [*_replaced_lengths(dict(pairs)), *pairs]:
        if path == "profile":
            raise UserError("--set profile=…: choose a profile with --profile")
        if path.startswith(FILES):
            path = f"imports.benchmarks.{path.removeprefix(FILES)}"
            name = path.split(".")[2]
            tasks = tree["evaluation"]["tasks"]
            tree["evaluation"]["tasks"] = [*tasks, *([] if name in tasks else [name])]
        path = SHORT.get(path, path)
        named = path.startswith(("imports.models.", "imports.benchmarks."))
        if named and path.count(".") == 2:
            path += ".source"  # the other fields are set beside it, before or after
        _assign(tree, path, value)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError("; ".join(_message(e) for e in error.errors())) from None
    for path, value in flatten(config.model_dump(mode="json")):
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise UserError(f"{path}: write finite numbers (given: {value})") from None
    for name in config.resources.stages:
        stage, colon, variant = name.partition(":")
        if stage not in STAGES:
            raise UserError(f"resources.stages.{name}: unknown stage; {nearest(stage, STAGES)}")
        if colon and not variant:
            raise UserError(f"resources.stages.{name}: name a variant after the colon, or `*`")
    return config
