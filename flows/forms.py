"""The typed forms of the Prefect UI: every field of a profile that a stage reads, all optional.

A form starts empty and shows the profiles' values, which fields that are filled in replace. Forms
are made from the config classes, so that types, limits and help texts are declared once.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from textwrap import shorten
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
)
from pydantic.fields import FieldInfo

from rlt_core.config import Config, ScratchModel, StageResources
from rlt_core.profiles import PROFILES
from rlt_core.stages import STAGES

SHOWN_VALUE = 60
"""Characters of a profile's value that a field shows."""
SOURCE = FieldInfo(
    annotation=str,
    description="Model instead of one from scratch: hub:org/name[@commit], folder:path, "
    "package:name.",
)
RESOURCES = FieldInfo(
    annotation=StageResources, description="Where it runs; does not change the key."
)
ProfileName = Literal[tuple(PROFILES)]  # type: ignore[valid-type]


class Form(BaseModel):
    """Base of every form: unknown fields are refused, and empty fields are not dumped."""

    model_config = ConfigDict(extra="forbid")

    @model_serializer(mode="wrap")
    def _filled(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value not in (None, {}, "")}


def _form(name: str, fields: dict[str, Any], **config: Any) -> type[Form]:
    """Return the class of a form; its name is that of a class."""
    title = "".join(part.title() for part in re.split(r"[-._]", name))
    made: type[Form] = create_model(title, __base__=Form, __cls_kwargs__=config, **fields)  # type: ignore[call-overload]
    return made


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the config class of a field, optional or not; None for names that the user chooses."""
    if get_origin(annotation) is dict:
        return None
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _plain(schema: dict[str, Any]) -> None:
    """Simplify the JSON schema of an optional field for the browser: its type, empty, and not a
    choice between its type and null.

    The browser sends false for a switch that nobody touched, so that it is a choice, empty at
    first.
    """
    branches = [one for one in schema.pop("anyOf", []) if one.get("type") != "null"]
    schema.update(branches[0] if len(branches) == 1 else {"anyOf": branches} if branches else {})
    schema.pop("default", None)
    if schema.get("type") == "boolean":
        del schema["type"]
        schema["enum"] = [True, False]


def _help(name: str, text: str | None, **default: Any) -> Any:
    """Return a field whose title is its name on the command line and in the tables."""
    return Field(**default, title=name, description=text, json_schema_extra=_plain)


def essentials(stage: str) -> dict[str, str]:
    """Return the path of each field of a stage that is edited most often."""
    models: dict[str, Any] = {
        section: _model_in(Config.model_fields[section].annotation)
        for section in STAGES[stage].sections
    }
    return {
        name: next(
            f"{section}.{name}"
            for section, model in models.items()
            if name in (*model.model_fields, "source")
        )
        for name in STAGES[stage].essentials
    }


@cache
def _profiles(stage: str) -> dict[str, dict[str, Any]]:
    """Return each profile as a tree, with the resources of one stage."""
    found = {}
    for name, profile in PROFILES.items():
        config = profile()
        tree = found[name] = config.model_dump(mode="json")
        tree["resources"] = config.resources.of(stage).model_dump(mode="json")
        if repo := tree["base_model"].get("repo"):
            tree["base_model"]["source"] = f"hub:{repo}"
    return found


def _values(stage: str, path: str) -> str:
    """Return the values of a field in the profiles: `tiny, smoke: 8 · paper-7b: 256`."""
    names: dict[str, list[str]] = {}
    for profile, tree in _profiles(stage).items():
        value: Any = tree
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value not in (None, {}, []):
            shown = shorten(json.dumps(value, ensure_ascii=False), SHOWN_VALUE, placeholder=" …")
            names.setdefault(shown, []).append(profile)
    if [len(PROFILES)] == [len(each) for each in names.values()]:
        return f"Every profile: {next(iter(names))}"
    return " · ".join(f"{', '.join(each)}: {value}" for value, each in names.items())


def _optional(stage: str, path: str, info: FieldInfo) -> tuple[Any, Any]:
    """Return a form's field for a field of the config."""
    name, text = path.rpartition(".")[2], info.description or ""
    inner = ScratchModel if path == "base_model" else _model_in(info.annotation)
    if inner is not None:
        form: Any = _partial(inner, stage, path)
        null_is_empty = Annotated[form, BeforeValidator(lambda value: value or {})]
        return null_is_empty, _help(name, text, default_factory=form)
    annotation: Any = info.annotation
    for constraint in info.metadata:
        annotation = Annotated[annotation, constraint]
    text = f"{text}\n\n{_values(stage, path)}".strip()  # Markdown: a paragraph of its own
    return annotation | None, _help(name, text, default=None)


@cache
def _partial(model: type[BaseModel], stage: str, path: str) -> type[Form]:
    """Return a form with the fields of a section of the config, all optional and empty.

    The browser does not show the fields that `essentials_form` has; the server takes them still.
    """
    fields = {
        name: _optional(stage, f"{path}.{name}", info)
        for name, info in model.model_fields.items()
        if name != "kind"
    }
    if path == "base_model":
        fields["source"] = _optional(stage, "base_model.source", SOURCE)
    moved = [name for name, where in essentials(stage).items() if where == f"{path}.{name}"]

    def hide(schema: dict[str, Any]) -> None:
        for name in moved:
            hidden = schema["properties"].pop(name)
            schema.setdefault("patternProperties", {})[f"^{name}$"] = hidden

    return _form(f"{path}-form", fields, json_schema_extra=hide)


@cache
def overrides_form(stage: str) -> type[Form]:
    """Return the form of the fields of a profile that one stage reads."""
    fields = {
        name: _optional(stage, name, Config.model_fields[name]) for name in STAGES[stage].sections
    }
    fields["resources"] = _optional(stage, "resources", RESOURCES)
    return _form(f"{stage}-overrides", fields)


@cache
def essentials_form(stage: str) -> type[Form]:
    """Return the form of the fields that are edited most often, by the last part of their path."""
    fields = {}
    for name, path in essentials(stage).items():
        section: Any = overrides_form(stage).model_fields[path.partition(".")[0]].annotation
        fields[name] = (section.model_fields[name].annotation, section.model_fields[name])
    return _form(f"{stage}-essentials", fields)


@cache
def inputs_form(stage: str) -> type[Form]:
    """Return the form of the artifacts that one stage reads: each a key, the unique beginning of a
    key, or a name."""
    inputs = STAGES[stage].inputs
    fields = {
        name: (str | None, _help(name, f"{text}; empty: the latest run's.", default=None))
        for name, text in (inputs or {}).items()
    }
    return _form(f"{stage}-inputs", fields, extra="allow" if inputs is None else "forbid")


def assignments(stage: str, overrides: BaseModel, first: BaseModel | None = None) -> list[str]:
    """Return the filled-in fields, `first` those of `essentials_form`, as `--set` assignments."""
    filled = overrides.model_dump(mode="json")
    for name, value in (first.model_dump(mode="json") if first else {}).items():
        filled.setdefault(essentials(stage)[name].partition(".")[0], {})[name] = value
    resources = filled.pop("resources", {})
    found: dict[str, Any] = {}
    base = filled.get("base_model", {})
    if "source" in base:
        found["base_model"] = base.pop("source")
    found |= dict(_leaves(filled))
    found |= {f"resources.stages.{stage}.{name}": value for name, value in resources.items()}
    return [f"{path}={json.dumps(value)}" for path, value in found.items()]


def _leaves(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
