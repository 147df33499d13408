"""One stage alone, on artifacts that are in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rlt_core.config import Config
from rlt_core.errors import UserError
from rlt_core.estimate import require_fit, require_room, require_servers
from rlt_core.experiments import nodes_of_stage
from rlt_core.experiments.full_pipeline import full_pipeline
from rlt_core.experiments.nodes import off_policy, with_estimator
from rlt_core.graph import Node, key_of, upstream
from rlt_core.stages import TraceScoringConfig
from rlt_core.store import Ref, Store
from tasks.stage import NodeSpec


def node_alone(
    stage: str,
    config: Config,
    variant: str,
    seed: int | None,
    inputs: Mapping[str, str],
    store: Store,
) -> NodeSpec:
    """A node of a profile's graph, but its inputs are what `inputs` says (name -> key, unique
    beginning of a key or name), and the latest run's where that says nothing.

    Raises UserError for an unknown variant, seed or input, for an artifact that is not there or of
    the wrong kind, and for a layout that cannot fit, which is told for the profile's own inputs.
    """
    node = _choose(stage, config, variant, seed)
    unknown = sorted(inputs.keys() - node.inputs.keys())
    if unknown:
        there = ", ".join(node.inputs) or "none"
        raise UserError(f"{node.name} has no input {unknown[0]!r}; its inputs: {there}")
    refs = {
        name: _given(name, inputs[name], parent, store)
        if name in inputs
        else _latest(name, parent, config.profile, store)
        for name, parent in node.inputs.items()
    }
    if isinstance(node.config, TraceScoringConfig):
        made = store.manifest(refs["traces"].kind, refs["traces"].key)
        assert made
        writer = made.inputs["teacher"].key if "teacher" in made.inputs else None
        reason = off_policy(made.stage, made.config, writer, refs["teacher"].key)
        node = replace(node, config=with_estimator(node.config, config, reason))
    key = key_of(node.stage, node.config, {name: ref.key for name, ref in refs.items()})
    if store.manifest(node.stage.kind, key) is None:
        require_servers(config, [node])
        if not inputs:
            require_room(config, [node], require_fit(config, [node], store), store)
    spec = NodeSpec.of(node, str(store), config.profile, config.resources.of(stage, node.variant))
    return spec.model_copy(update={"key": key, "inputs": refs})


def _choose(stage: str, config: Config, variant: str, seed: int | None) -> Node:
    """The full pipeline's, or where it has none of this variant an experiment's."""
    everywhere = nodes_of_stage(stage, config)
    pipeline = {node.key for node in upstream([full_pipeline(config)])}
    nodes = _of_variant([node for node in everywhere if node.key in pipeline], variant)
    if not nodes:
        nodes = _of_variant(everywhere, variant)
        if not nodes:
            named = ", ".join(sorted({node.variant or "(empty)" for node in everywhere}))
            raise UserError(f"variant {variant!r}: {stage} of {config.profile} has {named}")
    wanted = config.seeds[0] if seed is None else seed
    for node in nodes:
        if node.seed in (None, wanted):
            return node
    raise UserError(f"seed {wanted}: profile {config.profile} has seeds {list(config.seeds)}")


def _of_variant(nodes: list[Node], variant: str) -> list[Node]:
    """Those of a variant; all where none is named and there is one only."""
    only = len({node.variant for node in nodes}) == 1
    return nodes if only and not variant else [node for node in nodes if node.variant == variant]


def _given(name: str, artifact: str, parent: Node, store: Store) -> Ref:
    ref = store.find(artifact).ref
    if ref.kind != parent.stage.kind:
        raise UserError(
            f"input {name}: {artifact} is of kind {ref.kind}; {parent.stage.kind} is needed"
        )
    return ref


def _latest(name: str, parent: Node, profile: str, store: Store) -> Ref:
    ref = store.ref(f"{profile}/{parent.name}")
    if ref is None or store.manifest(ref.kind, ref.key) is None:
        raise UserError(
            f"input {name} is empty and no run of profile {profile} has left {parent.name} in "
            f"{store}; run rlt/full-pipeline or rlt/{parent.stage.name} first, or give a key"
        )
    return ref
