"""Where the machines that share a node's steps meet: the first says it in the node's workspace.

The first machine's torchrun keeps the key-value store by which all processes find each other
(https://docs.pytorch.org/docs/stable/elastic/run.html); the others must be able to reach its
address.
"""

from __future__ import annotations

import socket
import time

from pydantic import BaseModel

from rlt_core.errors import UserError
from rlt_core.progress import Progress
from rlt_core.store import Lease, Store
from tasks.stage import NodeSpec

POLL_S = 0.5
ALONE_S = 600.0
"""How long a machine waits for the first one while nobody works on the node."""


class Rendezvous(BaseModel):
    """An address that the other machines can reach."""

    host: str
    port: int


def _file(spec: NodeSpec) -> str:
    return f"work/{spec.key}/rendezvous/{spec.sent}.json"


def publish(spec: NodeSpec, store: Store) -> Rendezvous:
    """Say where this machine, the first one, is to be met."""
    with socket.socket() as free:
        free.bind(("", 0))
        here = Rendezvous(host=own_address(), port=free.getsockname()[1])
    store.files.write(_file(spec), here.model_dump_json().encode())
    return here


def find(spec: NodeSpec, store: Store, progress: Progress) -> Rendezvous:
    """Wait until the first machine has said where it is.

    Raises Stopped on request, UserError when nobody has worked on the node for ALONE_S.
    """
    seen = time.monotonic()
    while (data := store.files.read(_file(spec))) is None:
        progress.report(0, 0, {})
        progress.check()
        if Lease.holder(store.files, spec.key):
            seen = time.monotonic()
        if time.monotonic() - seen > ALONE_S:
            raise UserError(
                f"{spec.name}: the first of {spec.resources.machines} machines has not begun "
                f"within {ALONE_S:.0f} s; run the pipeline again"
            )
        time.sleep(POLL_S)
    return Rendezvous.model_validate_json(data)


def own_address() -> str:
    """The address from which this machine would reach others; loopback where it has no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address (RFC 5737); nothing is sent
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
