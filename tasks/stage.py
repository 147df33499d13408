"""A node on its way to where it is computed (NodeSpec), and what its stage's body receives
(StageContext)."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict

from rlt_core import processes
from rlt_core.budget import Allowance, TokenBudget
from rlt_core.config import Frozen, StageResources
from rlt_core.config.endpoint import Prices
from rlt_core.environment import is_out_of_memory
from rlt_core.errors import Stopped, UserError
from rlt_core.estimate import hint
from rlt_core.graph import Node
from rlt_core.progress import Progress
from rlt_core.prompts.format import RECORD, PromptFormat, Role, record_format, require_format
from rlt_core.rows import read_rows
from rlt_core.stages import STAGES, Stage, parse_config
from rlt_core.store import Manifest, Ref, Store
from rlt_core.training.context import TrainingContext
from tasks.shards import LongWork, NoShardLeft

if TYPE_CHECKING:
    from rlt_core.prompts.renderer import Renderer

Config = TypeVar("Config", bound=Frozen)


class NodeSpec(BaseModel):
    """All that computing a node needs, as JSON: the form in which a node travels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    key: str
    """Key that the sender expects; the child that computes refuses to if its own differs."""
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
    """Index of this run among those that share the node; run 0 commits it."""
    budget: TokenBudget | None = None
    """Of the run that the node belongs to."""
    sent: str = ""
    """Identity shared by those runs; empty if this run was not sent with others."""

    @classmethod
    def of(
        cls,
        node: Node,
        store: str,
        profile: str,
        resources: StageResources,
        budget: TokenBudget | None = None,
    ) -> NodeSpec:
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
            budget=budget if node.stage.spends else None,
        )

    @property
    def name(self) -> str:
        """The label with the seed, as in the graph."""
        return self.label if self.seed is None else f"{self.label}@{self.seed}"

    def manifest(self) -> Manifest | None:
        """Return the committed artifact of this node, None if there is none."""
        return Store(self.store).manifest(STAGES[self.stage].kind, self.key)

    @property
    def title(self) -> str:
        """The name, and this run's index among those that share the node."""
        if not self.sent:
            return self.name
        return f"{self.name} machine {self.machine + 1} of {self.resources.machines}"

    @property
    def cores(self) -> int:
        """CPU threads of all processes."""
        return STAGES[self.stage].processes(self.resources) * self.resources.threads

    @property
    def on_gpu(self) -> bool:
        """Whether the node is computed on GPUs where a machine has some."""
        return STAGES[self.stage].pool == "gpu" and self.resources.device != "cpu"


def require_one_machine(name: str, stage: Stage, resources: StageResources) -> None:
    """Raise UserError if several machines are to share a node's steps, which takes as many runs
    sent together. Shards can all be computed by one machine."""
    if stage.shared == "steps" and stage.machines(resources) > 1:
        raise UserError(
            f"{name}: resources.machines={resources.machines} takes as many runs of a worker pool: "
            "run it on a server (prefect deployment run rlt/…), or set "
            f"resources.stages.{stage.name}.machines=1"
        )


@dataclass(frozen=True)
class StageContext(LongWork):
    """A node that is being computed, in each of the processes that share its work. `out` is the
    folder for the artifact's files."""

    spec: NodeSpec
    config: Frozen
    manifests: Mapping[str, Manifest]
    """Inputs by name."""
    store: Store

    @property
    def stage(self) -> Stage:
        return STAGES[self.spec.stage]

    @property
    def resources(self) -> StageResources:
        """Where and how fast the node is computed."""
        return self.spec.resources

    @property
    def machine(self) -> int:
        return self.spec.machine

    @property
    def machines(self) -> int:
        return self.stage.machines(self.resources)

    def is_committed(self) -> bool:
        return self.store.manifest(self.stage.kind, self.spec.key) is not None

    def allowance(self, prices: Prices | None = None) -> Allowance | None:
        budget = self.spec.budget
        return Allowance(budget, self.store, self.spec.key, prices) if budget else None

    @property
    def seed(self) -> int:
        """The training seed; 0 for a node that all seeds share."""
        return self.spec.seed or 0

    def config_as(self, kind: type[Config]) -> Config:
        assert isinstance(self.config, kind)
        return self.config

    def tables(self, name: str) -> Path:
        """Local folder with an input's Parquet files, their hashes checked. Raises UserError for a
        damaged file."""
        return self.store.intact(self.manifests[name], ".parquet")

    def rows(
        self, name: str, table: str | None = None, columns: list[str] | None = None
    ) -> list[dict[str, Any]]:
        """Rows of an input's table, by default the one of the input's name; see `tables`."""
        return read_rows(self.tables(name), table or name, columns)

    def training_questions(self) -> list[dict[str, Any]]:
        return [row for row in self.rows("questions") if row["split"] == "train"]

    def model(self, name: str) -> Path:
        """Local model folder of an input; see `tables`."""
        return self.store.intact(self.manifests[name]) / "model"

    @cached_property
    def format(self) -> PromptFormat:
        """The config's prompt format, with the data's system prompt where it names none."""
        format: PromptFormat = self.config.format  # type: ignore[attr-defined]
        if format.student_system is not None:
            return format
        (system,) = {row["system"] for row in self.rows("system", "questions", ["system"])}
        return format.model_copy(update={"student_system": system})

    def require_format(self, name: str, role: Role) -> None:
        """Raise UserError if the model of an input was trained with another prompt format, unless
        the config allows it. `role`: what the model is used as."""
        if self.resources.allow_other_format or getattr(self.config, "format_named", False):
            return
        require_format(
            self.model(name), self.format, role, f"{self.spec.name}: the model {self.key(name)}",
            "set prompt_format, or imports.models.NAME.format of an imported model, to that one "
            f"(its {RECORD} is a format file), or resources.allow_other_format=true to use it",
        )  # fmt: skip

    def renderer(self, name: str, role: Role | None = None) -> Renderer:
        """Renderer for the tokenizer of an input's model, whose format is checked for the role."""
        from rlt_core.models import load_tokenizer
        from rlt_core.prompts.renderer import Renderer

        if role:
            self.require_format(name, role)
        return Renderer(self.format, load_tokenizer(self.model(name)))

    def training(self, seed: int) -> TrainingContext:
        """What a training of this node gets."""
        return TrainingContext(
            self.spec.stage, seed, self.out, self.work, self.resources, self.progress,
            name=f"{self.spec.profile}/{self.spec.name}",
        )  # fmt: skip

    def key(self, name: str) -> str:
        return self.manifests[name].ref.key


def context_of(spec: NodeSpec, store: Store, out: Path, progress: Progress) -> StageContext:
    """Look up a node's inputs. Raises UserError for one that is not in the store."""
    manifests = {}
    for name, ref in spec.inputs.items():
        manifest = store.manifest(ref.kind, ref.key)
        if manifest is None:
            raise UserError(f"{spec.name}: its input {name} ({ref.key}) is not in {store}")
        manifests[name] = manifest
    config = parse_config(spec.stage, spec.config)
    return StageContext(out, store.workspace(spec.key), progress, spec, config, manifests, store)


def run_body(ctx: StageContext) -> dict[str, float]:
    """Run the stage's body in this process and return the artifact's metrics."""
    if ctx.stage.pool == "gpu":
        from rlt_core.models import use_threads

        use_threads(ctx.resources.threads)
    try:
        metrics: dict[str, float] = importlib.import_module(ctx.stage.module).run(ctx)
    except NoShardLeft:
        return {}
    except (UserError, Stopped):
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        tried = re.search(r"[Tt]ried to allocate [\d.]+ \w+", str(error))
        said = f" ({tried[0][0].lower()}{tried[0][1:]})" if tried else ""
        raise UserError(
            f"{ctx.spec.name} ran out of memory{said}; it takes less with "
            f"{hint(ctx.stage, ctx.resources)}"
        ) from error
    if ctx.stage.model and getattr(ctx.config, "format", None) and processes.rank() == 0:
        record_format(ctx.out / "model", ctx.format)
    return metrics
