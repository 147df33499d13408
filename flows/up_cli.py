"""`rlt up` and `rlt down`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from flows.local import up as local
from flows.options import DEFAULT_STORE, StoreOption, store_place
from rlt_core.errors import UserError


def up(
    with_s3: Annotated[
        bool, typer.Option("--s3", help="Start an S3 server too, and keep the artifacts there.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(help="Of the Prefect server.  [default: 4200]")
    ] = None,
    gpu_runs: Annotated[
        int | None,
        typer.Option(help="Runs of the gpu pool at once; else 1 with a GPU, one a core without."),
    ] = None,
    store: StoreOption = "",
) -> None:
    """Start a Prefect server, pools, workers and all deployments on this machine."""
    if with_s3 and store:
        raise UserError("--s3 brings a store of its own; leave out --store and RLT_STORE")
    running = local.current()
    port = port or (running.port if running else local.PORT)
    if running and not with_s3 and not store:
        wanted = replace(running, port=port)
    elif with_s3:
        s3_port = running.s3_port if running and running.s3_port else local.s3_port()
        wanted = local.Up(port, f"s3://{local.BUCKET}/store", s3_port)
    else:
        wanted = local.Up(port, store_place(store or DEFAULT_STORE), None)
    local.bring_up(wanted, gpu_runs or local.gpu_limit(), print)
    print()
    print("prefect deployment run rlt/full-pipeline --param profile=tiny --watch")
    print(f"pages:  {wanted.dashboard}")
    print("stop:   rlt down")


def down() -> None:
    """Stop what `rlt up` started: workers first, then servers. Artifacts and history stay."""
    local.take_down(print)
