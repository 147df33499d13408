"""Planning: resolve a config once, build its graph once, and refuse what cannot run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlt_core import graph
from rlt_core.budget import TokenBudget
from rlt_core.config import Config, StageResources
from rlt_core.environment import require_tracker
from rlt_core.errors import UserError
from rlt_core.estimate import Machine, NodeEstimate, estimates, require_fit, require_servers
from rlt_core.experiments import nodes_of_stage, targets
from rlt_core.experiments.full_pipeline import full_pipeline
from rlt_core.experiments.nodes import Nodes, off_policy, with_estimator
from rlt_core.graph import Node, Planned, key_of, upstream
from rlt_core.hf_hub import UNPINNED
from rlt_core.names import nearest
from rlt_core.overrides import load_config
from rlt_core.profiles import PROFILES
from rlt_core.report.stored import report_what_exists
from rlt_core.stages import ReportConfig, TraceImportConfig, TraceScoringConfig
from rlt_core.store import Ref, Store
from tasks.stage import NodeSpec

SHOWN_NODES = 3
"""Nodes that an error names."""


def with_keys(config: Config, store: Store) -> Config:
    """Return a config in which models of the store, and folders that are none, have the key of the
    artifact of this name. Raises UserError if there is none."""

    def resolved(value: Any) -> Any:
        if isinstance(value, list):
            return [resolved(item) for item in value]
        if not isinstance(value, dict):
            return value
        kind, name = value.get("kind"), str(value.get("name") or value.get("path"))
        if kind == "artifact" or (kind == "folder" and not Path(name).is_dir() and store.ref(name)):
            return {"kind": "artifact", "name": store.find(name, "model").ref.key}
        return {field: resolved(inner) for field, inner in value.items()}

    found = resolved(tree := config.model_dump(mode="json"))
    return config if found == tree else Config.model_validate(found)


def token_budget(config: Config, nodes: Iterable[Node]) -> TokenBudget | None:
    """Return the budget of a graph's traces, if the config has one."""
    tokens, usd = config.resources.budget_tokens, config.resources.budget_usd
    if tokens is None and usd is None:
        return None
    keys = tuple(node.key for node in nodes if node.stage.spends)
    return TokenBudget(tokens=tokens, usd=usd, nodes=keys)


def require_trackers(config: Config, nodes: Iterable[Node]) -> None:
    """Raises UserError if a node that trains reports to a tracker that cannot be used."""
    for node in nodes:
        if "train_steps" in node.stage.tables:
            require_tracker(config.resources.of(node.stage.name, node.variant).tracking)


# ---------------------------------------------------------------- an experiment
@dataclass(frozen=True)
class Plan:
    """Every node that a target of a profile needs, inputs first; in the store or to be computed."""

    target: str
    profile: str
    store: Store
    budget_gpu_hours: float | None
    """No node starts that would take the run beyond it."""
    config: Config
    nodes: list[Planned]

    @classmethod
    def of(
        cls,
        target: str,
        profile: str,
        overrides: Iterable[str] | None = None,
        *,
        store: str,
        budget_gpu_hours: float | None = None,
    ) -> Plan:
        """Resolve the config and look every node up in the store. Raises UserError."""
        opened = Store(store)
        config = with_keys(load_config(profile, [*(overrides or ())]), opened)
        nodes = graph.plan(targets(target, config), opened, profile)
        _require_variants(config, PROFILES[profile]())
        return cls(target, profile, opened, budget_gpu_hours, config, nodes)

    @cached_property
    def missing(self) -> list[Node]:
        """Nodes that the store lacks, inputs first."""
        return [item.node for item in self.nodes if not item.hit]

    @cached_property
    def estimates(self) -> dict[str, NodeEstimate]:
        """Node key -> what the node needs."""
        return estimates(self.config, [item.node for item in self.nodes], self.store)

    def resources(self, node: Node) -> StageResources:
        return self.config.resources.of(node.stage.name, node.variant)

    def specs(self) -> list[NodeSpec]:
        """The missing nodes in the form in which they travel."""
        budget = token_budget(self.config, (item.node for item in self.nodes))
        return [
            NodeSpec.of(node, str(self.store), self.profile, self.resources(node), budget)
            for node in self.missing
        ]

    def require_computable(self) -> None:
        """Raises UserError if a missing node cannot fit its machine, samples from a server that has
        no name, or would be read from the hub without a commit."""
        self.require_readable()
        self.require_fit()
        require_servers(self.config, self.missing)
        self._require_pinned()

    def require_readable(self) -> None:
        """Raises UserError if missing nodes would read local files that cannot be used, or test
        questions or traces of data without any."""
        for node in self.missing:
            if isinstance(node.config, TraceImportConfig) and not node.config.digest:
                Nodes(self.config).require_traces()
            node.stage.check(node.config, node.paths)
            evaluation = getattr(node.config, "evaluation", None)
            if evaluation and "test" in evaluation.tasks and not self.config.data.n_test:
                raise UserError(
                    f"{node.name}: data.n_test is 0; raise it, or leave `test` out of "
                    "evaluation.tasks"
                )

    def require_fit(self) -> None:
        """Raises UserError if missing nodes cannot fit the machines that `resources` describe, or
        report to a tracker that is not there."""
        require_trackers(self.config, self.missing)
        if self.missing:
            require_fit(self.config, self.missing, self.store)

    def require_room_here(self) -> None:
        """Raises UserError if this machine lacks a GPU, vLLM, main memory or disk for missing
        nodes."""
        on_gpus = [self.resources(each) for each in self.missing if each.stage.pool == "gpu"]
        if any(each.device == "cuda" for each in on_gpus):
            from rlt_core.models import pick_device

            pick_device("cuda")
        engines = (
            self.resources(node).engine
            for node in self.missing
            if node.stage.rollouts or node.stage.tensor_parallel
        )
        if not find_spec("vllm") and "vllm" in engines:
            raise UserError(
                f"{self.profile} generates with vLLM, which is not installed; pip install "
                "'rlt-pipeline[vllm]', or --set resources.engine=transformers"
            )
        files = self.store.files
        unfinished = [files.local(f"work/{node.key}") for node in self.missing]
        here = Machine.here(files.local(""), unfinished)
        require_fit(self.config, self.missing, self.store, here)

    def _require_pinned(self) -> None:
        loose = [node.name for node in self.missing if UNPINNED in node.config.model_dump_json()]
        if loose:
            more = len(loose) - SHOWN_NODES
            raise UserError(
                f"{', '.join(loose[:SHOWN_NODES])}{f' and {more} more' if more > 0 else ''}: the "
                "hub is named without a commit, and none is pinned here; "
                f"`rlt fetch {self.target} --profile {self.profile}` (and the same --set) "
                "downloads the newest and pins it, or name one: hub:org/name@commit, "
                "data.revision, evaluation.revisions"
            )

    def save_config(self) -> None:
        """Write the config to `runs/` of the store, from where `--config` runs it again."""
        data = self.config.model_dump_json(indent=1).encode()
        digest = hashlib.sha256(data).hexdigest()[:8]
        self.store.files.write(f"runs/{self.target}-{digest}.json", data)

    def report_what_exists(self) -> list[str]:
        """Of a run that was stopped or failed: name the nodes that are committed, write the reports
        that it has not reached of them, and return their experiments."""
        committed = self.store.manifests_of(item.node.ref for item in self.nodes)
        self.name_artifacts(committed)
        return [
            node.config.title
            for node in self.missing
            if isinstance(node.config, ReportConfig)
            and node.key not in committed
            and report_what_exists(node, self.store, committed)
        ]

    def name_artifacts(self, keys: Iterable[str]) -> None:
        """Let `{profile}/{node}` name the artifacts with these keys from now on."""
        named, store = set(keys), self.store
        for node in (item.node for item in self.nodes):
            name = f"{self.profile}/{node.name}"
            if node.key in named and store.ref(name) != node.ref:
                store.set_ref(name, node.ref)


def _require_variants(config: Config, profile: Config) -> None:
    """Raises UserError if a variant that the user named in `resources.stages` is in no experiment
    of a config."""
    for name in sorted(config.resources.stages.keys() - profile.resources.stages.keys()):
        stage, _, pattern = name.partition(":")
        variants = {node.variant for node in nodes_of_stage(stage, config)} if pattern else set()
        if pattern and not any(fnmatchcase(variant, pattern) for variant in variants):
            raise UserError(
                f"resources.stages.{name}: no {stage} has this variant; "
                f"{nearest(pattern, variants)}"
            )


# ---------------------------------------------------------------- one stage
def plan_stage(
    stage: str,
    config: Config,
    variant: str,
    seed: int | None,
    inputs: Mapping[str, str],
    store: Store,
) -> NodeSpec:
    """Return a node of a profile's graph that reads committed artifacts: those that `inputs` names
    (input -> key, unique beginning of a key, or name), and for other inputs the latest run's.

    Raises UserError for an unknown variant, seed or input, for an artifact that is missing or of
    the wrong kind, and for a layout that cannot fit (checked for the profile's own inputs only).
    """
    config = with_keys(config, store)
    node = _choose(stage, config, variant, seed)
    if unknown := sorted(inputs.keys() - node.inputs.keys()):
        hint = nearest(unknown[0], node.inputs) if node.inputs else "it reads nothing"
        raise UserError(f"{node.name} has no input {unknown[0]!r}; {hint}")
    refs = {
        name: _input(name, inputs.get(name), parent, config.profile, store)
        for name, parent in node.inputs.items()
    }
    if isinstance(node.config, TraceScoringConfig):
        traces = store.manifest(refs["traces"].kind, refs["traces"].key)
        assert traces
        writer = traces.inputs["teacher"].key if "teacher" in traces.inputs else None
        reason = off_policy(traces.stage, traces.config, writer, refs["teacher"].key)
        node = replace(node, config=with_estimator(node.config, config, reason))
    key = key_of(node.stage, node.config, {name: ref.key for name, ref in refs.items()})
    if store.manifest(node.stage.kind, key) is None:
        node.stage.check(node.config, node.paths)
        require_servers(config, [node])
        require_trackers(config, [node])
        if not inputs:
            require_fit(config, [node], store)
    resources, budget = config.resources.of(stage, node.variant), token_budget(config, [node])
    spec = NodeSpec.of(node, str(store), config.profile, resources, budget)
    return spec.model_copy(update={"key": key, "inputs": refs})


def _choose(stage: str, config: Config, variant: str, seed: int | None) -> Node:
    """The node of the full pipeline, or if it has none of this variant, of an experiment."""
    everywhere = nodes_of_stage(stage, config)
    pipeline = {node.key for node in upstream([full_pipeline(config)])}
    in_pipeline = [node for node in everywhere if node.key in pipeline]
    nodes = _of_variant(in_pipeline, variant) or _of_variant(everywhere, variant)
    if not nodes:
        hint = nearest(variant, {node.variant or "(empty)" for node in everywhere})
        raise UserError(f"no variant {variant!r} of {stage} in profile {config.profile}; {hint}")
    wanted = config.seeds[0] if seed is None else seed
    for node in nodes:
        if node.seed in (None, wanted):
            return node
    raise UserError(f"seed {wanted}: profile {config.profile} has seeds {list(config.seeds)}")


def _of_variant(nodes: Sequence[Node], variant: str) -> list[Node]:
    """Nodes of a variant; all nodes if no variant is named and there is only one."""
    only = len({node.variant for node in nodes}) == 1
    return [node for node in nodes if (only and not variant) or node.variant == variant]


def _input(name: str, given: str | None, parent: Node, profile: str, store: Store) -> Ref:
    """The artifact that is given as an input, else the latest run's."""
    if given is None:
        ref = store.ref(f"{profile}/{parent.name}")
        if ref is None or store.manifest(ref.kind, ref.key) is None:
            raise UserError(
                f"input {name} is empty and no run of profile {profile} has left {parent.name} in "
                f"{store}; run rlt/full-pipeline or rlt/{parent.stage.name} first, or give a key"
            )
        return ref
    ref = store.find(given).ref
    if ref.kind != parent.stage.kind:
        raise UserError(
            f"input {name}: {given} is of kind {ref.kind}; {parent.stage.kind} is needed"
        )
    return ref
