"""`--set a.b=c`: a profile with some fields changed, refused with the nearest name when unknown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rlt_core.config import Config, StageResources
from rlt_core.errors import UserError
from rlt_core.profiles import PROFILES
from rlt_core.stages import STAGES


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a hint for an unknown name: the nearest known one, or all of them."""
    names = sorted(names)
    close = get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"


def parse_value(text: str) -> Any:
    """Return a JSON text's value (numbers, null, lists), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
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
        if inner is None and (_is_open(parents[:index]) or name in _fields_at(parents[:index])):
            inner = tree[name] = {}  # a field that is not dumped while it is empty
        if not isinstance(inner, dict):
            if name in tree:
                raise UserError(f"--set {path}: {'.'.join(parents[: index + 1])} has no fields")
            raise UserError(f"--set {path}: unknown field {name!r}; {nearest(name, tree)}")
        tree = inner
    if leaf == "kind":
        tree.clear()
    tree[leaf] = value


def _is_open(parents: list[str]) -> bool:
    """Return whether the user chooses the names below."""
    return parents[:1] in (["imports"], ["trace_sources"]) or parents[:2] == ["resources", "stages"]


def _fields_at(location: Sequence[str | int]) -> list[str]:
    """Return the fields of the config class at a place in the tree."""
    if tuple(location[:2]) == ("resources", "stages"):
        return list(StageResources.model_fields) if len(location) == 3 else []
    current: type[BaseModel] | None = Config
    for name in location:
        field = current.model_fields.get(str(name)) if current else None
        if field is None:
            break
        candidates = [field.annotation, *get_args(field.annotation)]
        current = next(
            (c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None
        )
    return list(current.model_fields) if current else []


def _message(error: ErrorDetails) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        *parents, name = error["loc"]
        fields = _fields_at(parents)
        return f"unknown field {path!r}" + (f"; {nearest(str(name), fields)}" if fields else "")
    given = error.get("input")
    shown = f" (given: {given!r})" if not isinstance(given, dict) else ""
    problem = error["msg"].removeprefix("Value error, ")
    if error["type"] == "tuple_type":
        problem = f"write a list, as --set '{path}=[…]'"
    elif error["type"] == "model_type":
        first = next(iter(_fields_at(error["loc"])), "field")
        problem = f"it has fields; set them, as --set {path}.{first}=…"
    return f"{path or 'config'}: {problem}{shown}"


def load_config(profile: str, assignments: Iterable[str] = ()) -> Config:
    """Return a profile with `--set` assignments applied.

    Raises UserError for an unknown profile or field (with the nearest name) or a wrong type.
    """
    if profile not in PROFILES:
        raise UserError(f"unknown profile {profile!r}; {nearest(profile, PROFILES)}")
    tree = PROFILES[profile]().model_dump(mode="json")
    for assignment in assignments:
        path, value = parse_set(assignment)
        if path == "profile":
            raise UserError("--set profile=…: choose a profile with --profile")
        named = path.startswith(("imports.models.", "imports.benchmarks."))
        if named and path.count(".") == 2:
            path += ".source"  # the other fields are set beside it, before or after
        _assign(tree, path, value)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError("; ".join(_message(e) for e in error.errors())) from None
    for name in config.resources.stages:
        stage = name.partition(":")[0]
        if stage not in STAGES:
            raise UserError(f"resources.stages.{name}: unknown stage; {nearest(stage, STAGES)}")
    return config
