"""The declaration of a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlt_core.config import Frozen, StageResources
from rlt_core.stages.cost import Cost, Inputs
from rlt_core.store.manifest import Kind


@dataclass(frozen=True)
class Stage:
    """A kind of work: everything that the rest of the code knows about it."""

    name: str
    version: int
    kind: Kind
    """Kind of its artifacts."""
    config: type[Frozen]
    tables: tuple[str, ...] = ()
    """Tables that every artifact of the stage has."""
    model: bool = False
    """Whether its artifact holds a `model/` folder."""
    inputs: Mapping[str, str] | None = field(default_factory=dict)
    """Artifacts that it reads: name -> help text; None: any number, of any name."""
    sections: tuple[str, ...] = ()
    """Sections of `Config` that it reads: the fields of its form."""
    essentials: tuple[str, ...] = ()
    """Fields that its form shows first, each of the first section that has it."""
    default_variant: str = ""
    """Variant that is meant where a form names none."""
    pool: Literal["cpu", "gpu"] = "cpu"
    """Work pool that its nodes go to."""
    shared: Literal["steps", "shards"] | None = None
    """Unit that several processes can share: the batch of every step, or shards; None: none."""
    tensor_parallel: bool = False
    """Whether its vLLM engine may span several GPUs; a trainer's cannot."""
    rollouts: bool = False
    """Whether it samples from the model that it trains."""
    spends: Literal["completions", "requests"] | None = None
    """What it takes of a run's token budget: the completions that it samples, or prompts and
    answers of the LLM that RLT_REFINE_BASE_URL names."""
    cost: Callable[[Any, Inputs], Cost] = lambda config, inputs: Cost()
    """What a node computes and makes, by its config and what it reads: the base of estimates."""
    check: Callable[[Any, Mapping[str, str]], None] = lambda config, paths: None
    """Raises UserError for local files and folders (`paths` of a node) that cannot be used; called
    before anything runs."""
    body: str = ""
    """Module of its function `run`, whose source is then part of the key; empty: one of ours,
    `tasks.stages.<name>`, whose changes `version` counts."""

    def __reduce__(self) -> tuple[Callable[[str], Stage], tuple[str]]:
        """Travel by name: its functions may be a user's lambdas."""
        return _registered, (self.name,)

    def processes(self, resources: StageResources) -> int:
        """Return the number of processes per machine that compute one of its nodes."""
        return resources.processes if self.shared else 1

    def machines(self, resources: StageResources) -> int:
        """Return the number of worker-pool runs that share one of its nodes."""
        return resources.machines if self.shared else 1

    def gpus(self, resources: StageResources) -> int:
        """Return the number of GPUs per machine that compute one of its nodes."""
        return self.processes(resources) * self.gpus_of_each(resources)

    def gpus_of_each(self, resources: StageResources) -> int:
        """Return the number of GPUs per process."""
        spans = self.tensor_parallel and resources.engine == "vllm"
        return resources.tensor_parallel if spans else 1

    @property
    def module(self) -> str:
        """Module of the stage's function `run`."""
        return self.body or f"tasks.stages.{self.name.replace('-', '_')}"


def _registered(name: str) -> Stage:
    from rlt_core.stages import STAGES

    return STAGES[name]
