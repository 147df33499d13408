"""`rlt export`: artifacts for other tools."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.cli.options import DEFAULT_STORE, ExistingStore
from flows.cli.terminal import print

app = typer.Typer(
    no_args_is_help=True, help="Artifacts for other tools: data sets and models for the hub."
)


@app.command()
def hub(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name, key or its beginning, e.g. tiny/teacher-grpo@0."
        ),
    ],
    what: Annotated[
        Literal["traces", "model"], typer.Option(help="What the artifact is.", show_default=False)
    ],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="New or empty folder.")],
    scores: Annotated[
        str | None,
        typer.Option(help="Scores of the traces (key or name); by default the newest of them."),
    ] = None,
    push_to: Annotated[
        str | None,
        typer.Option(
            "--push", metavar="ORG/NAME", help="Repository on the hub to upload the folder to."
        ),
    ] = None,
    store: ExistingStore = DEFAULT_STORE,
) -> None:
    """Write a model or a data set of traces in the layout of the Hugging Face hub, with a card.

    Nothing leaves this machine without --push, which makes a repository public unless it is there
    and private, or the organisation makes new ones private.
    """
    from rlt_core.export.hub import export, push, require_pushable

    if push_to:
        require_pushable(push_to)
    words = ["rlt", "export", "hub", "--what", what, "--to", str(to), name]
    splits = export(store, name, what, to, scores, push_to, shlex.join(words)).splits
    print(f"written: {to}{f' ({sum(splits.values())} rows)' if splits else ''}")
    if push_to:
        print(f"pushed: {push(to, push_to, what)}")
