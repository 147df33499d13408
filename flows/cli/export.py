"""`rlt export`: artifacts for other tools."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.filesize import decimal

from flows.cli.options import DEFAULT_STORE, StoreOption, existing_store
from flows.cli.terminal import print

app = typer.Typer(help="Artifacts for other tools: data sets and models for the hub.")


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
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write a model or a data set of traces in the layout of the Hugging Face hub, with a card.

    Nothing leaves this machine without --push, which makes a repository public unless it is there
    and private, or the organisation makes new ones private.
    """
    opened = existing_store(store)
    from rlt_core.export.hub import Export, push, require_pushable

    if push_to:
        require_pushable(push_to)
    words = ["rlt", "export", "hub", "--what", what, "--to", str(to), name]
    done = Export(opened, name, what, to, scores, push_to, shlex.join(words)).write()
    for note in done.notes:
        print(note, file=sys.stderr)
    rows = f"{done.rows} rows, " if what == "traces" else ""
    print(f"written: {done.folder} ({rows}{decimal(done.bytes)})")
    if push_to:
        print(f"pushed: {push(done.folder, push_to, what)}")
