"""`rlt up` and `rlt down`, and `rlt setup-server` for a server that runs elsewhere."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, cast

import typer

from flows.cli.options import DEFAULT_STORE, StoreOption, store_place
from flows.server import local
from rlt_core.errors import UserError

if TYPE_CHECKING:
    from flows.server.setup import PoolType

POOL_TYPES = ("process", "kubernetes")


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


def setup_server(
    pools: Annotated[
        str, typer.Option(help="How the pools start runs: process or kubernetes.")
    ] = "process",
) -> None:
    """Make pools, queues, zombie watch and deployments on the server of PREFECT_API_URL."""
    if pools not in POOL_TYPES:
        raise UserError(f"--pools {pools}: it is one of {', '.join(POOL_TYPES)}")
    api = os.environ.get("PREFECT_API_URL")
    if not api:
        raise UserError(
            "PREFECT_API_URL is not set: the server's address, e.g. http://HOST:4200/api. "
            "`rlt up` starts a server on this machine and sets it up"
        )
    import httpx

    from flows.server import setup as steps

    try:
        steps.set_up(api, cast("PoolType", pools))
    except httpx.HTTPError as error:
        raise UserError(f"PREFECT_API_URL={api}: {str(error) or type(error).__name__}") from None
    steps.deploy(os.environ)
    print(f"pools     {' and '.join(steps.POOLS)} ({pools}), queues {', '.join(steps.QUEUES)}")
    print("watch     runs without a heartbeat for 540 s are crashed")
    print("deployed  all of prefect.yaml: every experiment, every stage")
