"""`rlt up`, `rlt down`, `rlt setup-server`, `rlt worker`."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Annotated

import typer

from flows.cli.options import DEFAULT_STORE, StoreOption, store_place
from flows.cli.terminal import print
from flows.server import local
from rlt_core.errors import UserError

POOL_TYPES = ("process", "kubernetes")


def up(
    with_s3: Annotated[
        bool, typer.Option("--s3", help="Also start an S3 server, with the store on it.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of the Prefect server.", show_default="4200"),
    ] = None,
    gpu_runs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Concurrent runs of the gpu pool.",
            show_default="one per GPU, else per core",
        ),
    ] = None,
    store: StoreOption = "",
) -> None:
    """Start a Prefect server with pools, workers and all deployments on this machine."""
    if with_s3 and store:
        raise UserError("--s3 has a store of its own; leave out --store and RLT_STORE")
    running = local.current()
    port = port or (running.port if running else local.PORT)
    if running and not with_s3 and not store:
        wanted = replace(running, port=port)
    elif with_s3:
        s3_port = running.s3_port if running and running.s3_port else local.s3_port()
        wanted = local.LocalServer(port, f"s3://{local.BUCKET}/store", s3_port)
    else:
        wanted = local.LocalServer(port, store_place(store or DEFAULT_STORE), None)
    local.bring_up(wanted, gpu_runs, print)
    print()
    print("prefect deployment run rlt/full-pipeline --param profile=tiny --watch")
    print(f"pages:  {wanted.dashboard} (login: the line in {local.auth_file()})")
    print("stop:   rlt down")


def down() -> None:
    """Stop everything that `rlt up` started. Artifacts and history are kept."""
    local.take_down(print)


def setup_server(
    pools: Annotated[
        str, typer.Option(help="Type of the work pools: process or kubernetes.")
    ] = "process",
) -> None:
    """Create pools, queues, zombie watch and deployments on the server at PREFECT_API_URL."""
    if pools not in POOL_TYPES:
        raise UserError(f"--pools {pools}: choose from {', '.join(POOL_TYPES)}")
    _require_named("`rlt up` starts a server on this machine and sets it up")
    from flows.server import setup

    setup.set_up(pools)
    setup.deploy(os.environ)
    print(f"pools     {' and '.join(setup.POOLS)} ({pools}), queues {', '.join(setup.QUEUES)}")
    print("watch     crashes runs without a heartbeat for 540 s")
    print("deployed  every experiment and every stage: rlt/<name>")


def worker(
    pool: Annotated[str, typer.Option(help="Work pool to poll, of type process.")] = "gpu",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum of concurrent runs.", show_default="none")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Unique name of the worker.")] = None,
    with_healthcheck: Annotated[
        bool, typer.Option("--with-healthcheck", help="Health check at :8080/health.")
    ] = False,
) -> None:
    """Poll a work pool and execute its runs.

    On SIGTERM or Ctrl-C the worker accepts no new runs and exits once the active ones have
    checkpointed.
    """
    _require_named("`rlt up` starts a server and workers on this machine")
    from flows.server.worker import serve

    serve(pool, limit, name, with_healthcheck)


def _require_named(alternative: str) -> None:
    """Raise UserError unless PREFECT_API_URL names a server that answers."""
    if not os.environ.get("PREFECT_API_URL"):
        raise UserError(
            "PREFECT_API_URL is not set; set it to the server's address, e.g. "
            f"http://HOST:4200/api. {alternative}"
        )
    local.require_server()
