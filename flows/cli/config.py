"""`rlt config`: every field with its value, type, limits, help and where the value comes from."""

import json
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.text import Text

from flows.cli.options import ConfigFileOption, JsonOption, ProfileOption, SetOption, started_from
from flows.cli.terminal import new_table, print_json, table_console
from rlt_core.config import Config
from rlt_core.config.fields import fields
from rlt_core.errors import UserError
from rlt_core.graph import flatten
from rlt_core.overrides import fields_at, load_config, nearest_fields

MISSING = object()
TABLE_WIDTH = 120
"""Columns of a terminal that a table takes; a narrower one gets each field as a block."""


def config(
    section: Annotated[
        str, typer.Argument(help="A section or field, as teacher_grpo; empty: all.")
    ] = "",
    profile: ProfileOption = None,
    set_: SetOption = None,
    config_file: ConfigFileOption = None,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option("--diff", metavar="P Q", help="Only fields in which two profiles differ."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the fields of a config: value, type and limits, where the value comes from, help."""
    if diff and profile:
        raise UserError("--diff names both profiles: leave --profile out")
    profile, changes = started_from(diff[0] if diff else profile, config_file, set_)
    chosen = [one for one in fields() if not section or f"{one.path}.".startswith(f"{section}.")]
    if not chosen:
        here = fields_at(section.split(".")[:-1]) or Config.model_fields
        raise UserError(f"unknown field {section!r}; {nearest_fields(section, here)}")
    resolved, started = _values(profile, changes), _values(profile, [])
    other = _values(diff[1], []) if diff else resolved
    rows = []
    for field in chosen:
        value, there = (each.get(field.path, MISSING) for each in (resolved, other))
        if diff:
            value, there = (None if each is MISSING else each for each in (value, there))
        if value is MISSING or (diff and there == value):
            continue  # in a section that is empty, or of another kind
        changed = value != started.get(field.path, MISSING) and not diff
        row = {"field": field.path, "value": value, "type": field.type}
        row |= {"origin": "changed" if changed else profile} | ({diff[1]: there} if diff else {})
        rows.append(row | {"help": field.help})
    if as_json:
        print_json(rows)
        return
    console = table_console()
    names = ("value", diff[1] if diff else "type", "origin")
    table = new_table("field", *names, "help", whole=("field",))
    values = names[:2] if diff else names[:1]
    for row in rows:
        row |= {name: json.dumps(row[name], ensure_ascii=False) for name in values}
        cells = [row[name] for name in names]
        if console.width >= TABLE_WIDTH:
            table.add_row(row["field"], *cells, row["help"])
        else:
            said = (f"  {name} {cell}" for name, cell in zip(names, cells, strict=True))
            console.print(Text.assemble((row["field"], "bold"), *said))
            console.print(Padding(row["help"], (0, 0, 0, 4)))
    if console.width >= TABLE_WIDTH:
        console.print(table)


def _values(profile: str, changes: list[str]) -> dict[str, Any]:
    """Return each field's value as JSON by its path."""
    return dict(flatten(load_config(profile, changes).model_dump(mode="json")))
