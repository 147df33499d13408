"""`rlt config`: every field with its value, type, limits, help and where the value comes from."""

import json
from typing import Annotated, Any

import typer

from flows.cli.options import ConfigFileOption, JsonOption, ProfileOption, SetOption, started_from
from flows.cli.tables import new_table, table_console
from flows.cli.terminal import print_data
from rlt_core.config import Config
from rlt_core.config.fields import fields
from rlt_core.errors import UserError
from rlt_core.overrides import load_config, nearest_fields

MISSING = object()


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
    profile, changes = started_from(diff[0] if diff else profile, config_file, set_)
    resolved = load_config(profile, changes)
    started = load_config(profile)
    other = load_config(diff[1]) if diff else resolved
    rows = []
    for field in fields():
        if section and not f"{field.path}.".startswith(f"{section}."):
            continue
        value, there = _value(resolved, field.path), _value(other, field.path)
        if diff:
            value, there = (None if each is MISSING else each for each in (value, there))
        if value is MISSING or (diff and there == value):
            continue  # in a section that is empty, or of another kind
        changed = value != _value(started, field.path)
        rows.append((field, value, there, "changed" if changed and not diff else profile))
    if not rows and section and not any(f"{f.path}.".startswith(f"{section}.") for f in fields()):
        raise UserError(
            f"unknown field {section!r}; {nearest_fields(section, Config.model_fields)}"
        )
    if as_json:
        found = [
            {"field": field.path, "value": value, "type": field.type, "origin": origin}
            | ({diff[1]: there} if diff else {})
            | {"help": field.help}
            for field, value, there, origin in rows
        ]
        print_data(json.dumps(found, indent=1, ensure_ascii=False))
        return
    console = table_console()
    table = new_table(
        "field", "value", diff[1] if diff else "type", "origin", "help", whole=("field",)
    )
    for field, value, there, origin in rows:
        beside = _shown(there) if diff else field.type
        table.add_row(field.path, _shown(value), beside, origin, field.help)
    console.print(table)


def _value(config: Config, path: str) -> Any:
    """Return a field's value as JSON; MISSING if its section is empty or of another kind."""
    found: Any = config.model_dump(mode="json")
    for name in path.split("."):
        if not isinstance(found, dict) or name not in found:
            return MISSING
        found = found[name]
    return MISSING if isinstance(found, dict) and found else found


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
