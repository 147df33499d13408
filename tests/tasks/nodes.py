"""Stores with given inputs, and nodes that compute on them in this process."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infra.sample_manifest import sample_manifest
from rlt_core.config import Frozen, StageResources
from rlt_core.graph import key_of
from rlt_core.progress import Progress
from rlt_core.rows import write_rows
from rlt_core.stages import STAGES
from rlt_core.store import Manifest, Ref, Store
from tasks.execute import execute
from tasks.stage import NodeSpec


def committed(
    store: Store,
    ref: Ref,
    fill: Callable[[Path], Any],
    inputs: Mapping[str, Ref] | None = None,
    stage: str = "given",
) -> Ref:
    """Commit an artifact whose files `fill` writes."""
    attempt = store.begin(ref)
    fill(attempt.out)
    files = store.describe(attempt)
    origins = {"stage": stage, "label": stage, "seed": None, "inputs": dict(inputs or {})}
    store.commit(sample_manifest(ref, attempt.id, files, **origins))
    return ref


def table(name: str, rows: list[dict[str, Any]]) -> Callable[[Path], Any]:
    return lambda out: write_rows(out / f"{name}.parquet", name, rows)


def node_spec(
    store: Store, stage: str, config: Frozen, inputs: Mapping[str, Ref], **resources: Any
) -> NodeSpec:
    return NodeSpec(
        store=str(store), key=key_of(STAGES[stage], config, {k: r.key for k, r in inputs.items()}),
        stage=stage, config=config.model_dump(mode="json"), inputs=dict(inputs), label=stage,
        seed=0, profile="smoke", paths={}, resources=StageResources(device="cpu", **resources),
    )  # fmt: skip


def run(spec: NodeSpec) -> Manifest:
    manifest = execute(spec.model_dump(mode="json"), Progress())
    assert manifest
    return Manifest.model_validate_json(manifest)
