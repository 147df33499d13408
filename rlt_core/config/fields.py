"""Every field of the config: path, type, limits and help, read from the config classes.

`python -m rlt_core.config.fields` prints docs/config.md.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from rlt_core.config import Config

LIMITS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "pattern": "matches"}
HEADER = """# Every field of the config

`rlt config` prints the fields with the values of a profile; `--set FIELD=VALUE` changes one, and
`--config FILE.toml` many. `null` leaves out a section that may be empty. NAME stands for a name of
your own. This page is generated: `python -m rlt_core.config.fields > docs/config.md`.
"""


@dataclass(frozen=True)
class ConfigField:
    """One field that has a value of its own."""

    path: str
    type: str
    """Type and limits."""
    help: str


def fields(model: type[BaseModel] = Config, path: str = "") -> Iterator[ConfigField]:
    """Yield the fields of a config class, and those of the classes in it, in their order.

    A section that is one of several kinds (`base_model`) yields the fields of each kind.
    """
    for name, info in model.model_fields.items():
        if name == "profile":
            continue
        here = f"{path}{name}"
        inner = list(_models(info.annotation))
        optional = NoneType in get_args(info.annotation)
        text = " ".join((info.description or "").split())
        if optional or not inner:
            yield ConfigField(here, type_text(info.annotation, info.metadata), text)
        below = f"{here}.NAME." if get_origin(info.annotation) is dict else f"{here}."
        found: dict[str, ConfigField] = {}
        for field in (field for kind in inner for field in fields(kind, below)):
            known = found.setdefault(field.path, field)
            if field.type not in known.type:  # `kind`, of each kind
                found[field.path] = replace(known, type=f"{known.type} or {field.type}")
        yield from found.values()


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the config classes that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not tuple:
        for inner in get_args(annotation):
            yield from _models(inner)


def type_text(annotation: Any, limits: Any = ()) -> str:
    """Return a type with its limits: `int > 0`, `float ≥ 0, ≤ 1 or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    bounds = [
        f"{sign} {value}"
        for limit in limits
        for name, sign in LIMITS.items()
        if (value := getattr(limit, name, None)) is not None
    ]
    if origin is Annotated:
        inner = annotation.__metadata__
        found = [each for one in inner for each in (*getattr(one, "metadata", ()), one)]
        return type_text(arguments[0], found)
    if origin is Literal:
        text = " or ".join(json.dumps(value) for value in arguments)
    elif origin in (Union, UnionType):
        branches = [type_text(one, limits) for one in arguments if one is not NoneType]
        return " or ".join(dict.fromkeys([*branches, *["null"][: NoneType in arguments]]))
    elif origin is tuple:
        text = f"list of {type_text(arguments[0])}"
    elif origin is dict:
        text = f"NAME → {type_text(arguments[1])}"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        text = "a section"
    else:
        text = "any" if annotation is Any else getattr(annotation, "__name__", str(annotation))
    return " ".join([text, ", ".join(bounds)]).strip()


def reference() -> str:
    """Return docs/config.md: a table for each section."""
    sections: dict[str, list[ConfigField]] = {}
    for field in fields():
        top = field.path.partition(".")[0]
        annotation = Config.model_fields[top].annotation
        is_section = get_origin(annotation) is dict or any(_models(annotation))
        sections.setdefault(top if is_section else "general", []).append(field)
    text, earlier = HEADER, dict[tuple[tuple[str, str], ...], str]()
    for name, found in sections.items():
        text += f"\n## {name}\n\n"
        here = [field for field in found if field.path == name]
        text += "".join(f"{field.help} May be null.\n\n" for field in here)
        rows = [field for field in found if field.path != name]
        same = tuple((row.path.removeprefix(name), row.type) for row in rows)
        first = earlier.setdefault(same, name)
        if first != name:
            text += f"The fields of [{first}](#{first}).\n"
            continue
        text += "| field | type | what it is |\n|---|---|---|\n"
        for row in rows:
            cells = (f"`{row.path}`", row.type, row.help)
            text += "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    return text


if __name__ == "__main__":
    print(reference(), end="")
