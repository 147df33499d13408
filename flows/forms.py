"""The typed forms of the Prefect UI: every field of a profile that a stage reads, all optional.

A form starts empty, and fields that are filled in replace the profile's. Forms are made from the
config classes, so that types, limits and help texts are declared once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
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

ProfileName = Literal[tuple(PROFILES)]  # type: ignore[valid-type]


class Form(BaseModel):
    """Base of every form: unknown fields are refused, and empty fields are not dumped."""

    model_config = ConfigDict(extra="forbid")

    @model_serializer(mode="wrap")
    def _filled(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value not in (None, {}, "")}


class OpenForm(Form):
    """A form whose fields are not known beforehand."""

    model_config = ConfigDict(extra="allow")


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


def _optional(name: str, info: FieldInfo) -> tuple[Any, Any]:
    """Return a form's field for a field of the config."""
    inner = _model_in(info.annotation)
    if inner is not None:
        form: Any = partial(inner)
        null_is_empty = Annotated[form, BeforeValidator(lambda value: value or {})]
        return null_is_empty, _help(name, info.description, default_factory=form)
    annotation: Any = info.annotation
    for constraint in info.metadata:
        annotation = Annotated[annotation, constraint]
    return annotation | None, _help(name, info.description, default=None)


@cache
def partial(model: type[BaseModel]) -> type[Form]:
    """Return a form with the fields of a config class, all optional and empty."""
    fields = {
        name: _optional(name, info) for name, info in model.model_fields.items() if name != "kind"
    }
    made: type[Form] = create_model(f"{model.__name__}Form", __base__=Form, **fields)  # type: ignore[call-overload]
    return made


class BaseModelForm(partial(ScratchModel)):  # type: ignore[misc]
    """Fields of a model from scratch, or `source`."""

    source: str | None = _help(
        "source",
        "Model instead of one from scratch: hub:org/name[@commit], folder:path, package:name.",
        default=None,
    )


def _section(name: str) -> tuple[Any, Any]:
    info = Config.model_fields[name]
    if name == "base_model":
        return BaseModelForm, _help(name, info.description, default_factory=BaseModelForm)
    return _optional(name, info)


@cache
def overrides_form(stage: str) -> type[Form]:
    """Return the form of the fields of a profile that one stage reads."""
    fields = {name: _section(name) for name in STAGES[stage].sections}
    resources = partial(StageResources)
    fields["resources"] = (
        resources,
        _help("resources", "Where it runs; does not change the key.", default_factory=resources),
    )
    name = f"{_camel(stage)}Overrides"
    made: type[Form] = create_model(name, __base__=Form, **fields)  # type: ignore[call-overload]
    return made


@cache
def inputs_form(stage: str) -> type[Form]:
    """Return the form of the artifacts that one stage reads: each a key, the unique beginning of a
    key, or a name."""
    inputs = STAGES[stage].inputs
    fields = {
        name: (str | None, _help(name, f"{text}; empty: the latest run's.", default=None))
        for name, text in (inputs or {}).items()
    }
    base = OpenForm if inputs is None else Form
    made: type[Form] = create_model(f"{_camel(stage)}Inputs", __base__=base, **fields)  # type: ignore[call-overload]
    return made


def _camel(stage: str) -> str:
    return "".join(part.title() for part in stage.split("-"))


def assignments(stage: str, overrides: BaseModel) -> list[str]:
    """Return the filled-in fields as `--set` assignments."""
    filled = overrides.model_dump(mode="json")
    resources = filled.pop("resources", {})
    found = []
    base = filled.get("base_model", {})
    if "source" in base:
        found.append(f"base_model={json.dumps(base.pop('source'))}")
    found += [f"{path}={json.dumps(value)}" for path, value in _leaves(filled)]
    found += [
        f"resources.stages.{stage}.{name}={json.dumps(value)}" for name, value in resources.items()
    ]
    return found


def _leaves(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
