"""Every command of `rlt` with its arguments and options, read from the commands.

`python -m flows.cli.reference > docs/cli.md`.
"""

from __future__ import annotations

import sys
from typing import Any

import typer

from flows.cli.app import app

HEADER = """# Every command

`rlt COMMAND --help` prints the same. Exit status: 0 done, 1 failed, 2 a mistake in the input, 130
stopped. This page is generated: `python -m flows.cli.reference > docs/cli.md`.
"""


def reference() -> str:
    """Return docs/cli.md: a section for each command."""
    command: Any = typer.main.get_command(app)
    return HEADER + _sections(command, typer.Context(command, info_name="rlt"))


def _sections(command: Any, context: Any) -> str:
    if not hasattr(command, "list_commands"):
        return _section(command, context)
    text = f"\n## {context.command_path}\n\n{command.help}\n" if context.parent else ""
    if command.invoke_without_command:
        text = _section(command, context)
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        if not below.hidden:
            text += _sections(below, typer.Context(below, parent=context, info_name=name))
    return text


def _section(command: Any, context: Any) -> str:
    depth = "##" if context.parent.parent is None else "###"
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    text = f"\n{depth} {context.command_path}\n\n{_escaped(command.help)}\n\n    {usage}\n"
    rows = list(filter(None, (param.get_help_record(context) for param in command.params)))
    if rows:
        text += "\n| argument or option | meaning |\n|---|---|\n"
    for name, words in rows:
        cells = (f"`{name}`", _escaped(" ".join(words.split())))
        text += "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    return text


def _escaped(text: str) -> str:
    """Text that is not taken for Markdown or HTML."""
    return text.replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    sys.stdout.write(reference())
