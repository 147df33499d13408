"""A node in the form in which it travels to where it is computed."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from rlt_core.config import StageResources
from rlt_core.errors import UserError
from rlt_core.graph import Node
from rlt_core.stages import STAGES, Stage
from rlt_core.store import Ref


class NodeSpec(BaseModel):
    """All that computing a node needs, as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    key: str
    """The key that the sender expects; whoever computes refuses if its own differs."""
    stage: str
    config: dict[str, Any]
    inputs: dict[str, Ref]
    label: str
    seed: int | None
    profile: str
    paths: dict[str, str]
    resources: StageResources
    flow_run_id: str | None = None
    machine: int = 0
    """Which of the runs that share the node this is; the first, 0, commits it."""
    sent: str = ""
    """Those runs have this in common; empty: this one was not sent with others."""

    @classmethod
    def of(cls, node: Node, store: str, profile: str, resources: StageResources) -> NodeSpec:
        """The spec of a node of a profile's graph."""
        return cls(
            store=store,
            key=node.key,
            stage=node.stage.name,
            config=node.config.model_dump(mode="json"),
            inputs={name: parent.ref for name, parent in node.inputs.items()},
            label=node.label,
            seed=node.seed,
            profile=profile,
            paths=dict(node.paths),
            resources=resources,
        )

    @property
    def name(self) -> str:
        """The label with the seed, as in the graph."""
        return self.label if self.seed is None else f"{self.label}@{self.seed}"

    @property
    def title(self) -> str:
        """The name, and which of the runs that share the node this is."""
        if not self.sent:
            return self.name
        return f"{self.name} machine {self.machine + 1} of {self.resources.machines}"

    @property
    def cores(self) -> int:
        """CPU threads of all its processes."""
        return STAGES[self.stage].processes(self.resources) * self.resources.threads

    @property
    def on_gpu(self) -> bool:
        """Whether it is computed on GPUs, of a machine that has some."""
        return STAGES[self.stage].pool == "gpu" and self.resources.device != "cpu"


def require_one_machine(name: str, stage: Stage, resources: StageResources) -> None:
    """Raises UserError if several machines are to share a node's steps, which takes as many runs
    that were sent together; of shards one machine alone does all."""
    if stage.shared == "steps" and stage.machines(resources) > 1:
        raise UserError(
            f"{name}: resources.machines={resources.machines} takes as many runs of a worker pool: "
            "run it on a server (prefect deployment run rlt/…), or set "
            f"resources.stages.{stage.name}.machines=1"
        )
