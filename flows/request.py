"""What was asked for, as the command line hands it to the process that runs it."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from rlt_core.config import Config
from rlt_core.errors import UserError
from rlt_core.estimate import (
    Machine,
    NodeEstimate,
    estimates,
    require_fit,
    require_room,
    require_servers,
)
from rlt_core.experiments import targets
from rlt_core.graph import Node, Planned, plan
from rlt_core.hf_hub import UNPINNED
from rlt_core.overrides import load_config
from rlt_core.store import Store

SHOWN = 3
"""Nodes that a refusal names."""


class Request(BaseModel):
    """A target of a profile with some fields changed, in a store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    profile: str
    overrides: tuple[str, ...] = ()
    store: str
    budget_gpu_hours: float | None = None
    """No node begins that would take the run beyond it."""

    def config(self) -> Config:
        """The whole config. Raises UserError."""
        return load_config(self.profile, self.overrides)

    def plan(self) -> list[Planned]:
        """Every node that the target needs, inputs first. Raises UserError, also where
        the layout of what is missing cannot fit, where it samples from a server without a name, or
        where it would be read from the hub without a commit."""
        planned = self.look_up()
        self.require_fit(planned)
        require_servers(self.config(), [item.node for item in planned if not item.hit])
        self.require_pinned(planned)
        return planned

    def look_up(self) -> list[Planned]:
        """The same, however much it takes."""
        return plan(targets(self.target, self.config()), Store(self.store))

    def estimates(self, planned: Sequence[Planned]) -> dict[str, NodeEstimate]:
        """Node key -> what it takes."""
        nodes = [item.node for item in planned]
        return estimates(self.config(), nodes, Store(self.store))

    def require_fit(self, planned: Sequence[Planned]) -> None:
        """Raises UserError if the layout of what is missing cannot fit into the machines that
        `resources` describe."""
        missing = [item.node for item in planned if not item.hit]
        if missing:
            config, store = self.config(), Store(self.store)
            require_room(config, missing, require_fit(config, missing, store), store)

    def require_room_here(self, planned: Sequence[Planned]) -> None:
        """Raises UserError if what is missing cannot be computed on this machine for lack of main
        memory or disk."""
        missing = [item.node for item in planned if not item.hit]
        store = Store(self.store)
        unfinished = [store.files.local(f"work/{node.key}") for node in missing]
        here = Machine.here(store.files.local(""), unfinished)
        require_room(self.config(), missing, self.estimates(planned), store, here)

    def require_pinned(self, planned: Sequence[Planned]) -> None:
        """Raises UserError if something that is missing names the hub without a commit."""
        missing = [item.node for item in planned if not item.hit]
        loose = [node.name for node in missing if UNPINNED in node.config.model_dump_json()]
        if loose:
            more = f" and {len(loose) - SHOWN} more" if len(loose) > SHOWN else ""
            raise UserError(
                f"{', '.join(loose[:SHOWN])}{more}: the hub is named without a commit, and none is "
                f"pinned here; `rlt fetch {self.target} --profile {self.profile}` (and the same "
                "--set) downloads the newest and pins it, or name one: hub:org/name@commit, "
                "data.revision, evaluation.revisions"
            )


def name_nodes(store: Store, profile: str, nodes: list[Node]) -> None:
    """Let `{profile}/{node}` name these artifacts from now on."""
    for node in nodes:
        name = f"{profile}/{node.name}"
        if store.ref(name) != node.ref:
            store.set_ref(name, node.ref)
