"""Manifests of artifacts that nothing computed, for benchmarks and tests."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from rlt_core.graph import Node
from rlt_core.store import FileEntry, Manifest, Ref


def sample_manifest(
    ref: Ref, attempt: str, files: Iterable[FileEntry] = (), **fields: Any
) -> Manifest:
    """Return a manifest with made-up origins, which `fields` replace."""
    now = datetime.now(UTC)
    origins = {
        "stage": "evaluation", "stage_version": 1, "label": "evaluation[x]", "profile": "smoke",
        "seed": 0, "config": {}, "inputs": {}, "metrics": {}, "packages": {}, "git_commit": None,
        "flow_run_id": None, "started_at": now, "finished_at": now, "seconds": 0,
        "gpu_seconds": 0, "device": "cpu", "threads": 1,
    }  # fmt: skip
    return Manifest(ref=ref, attempt=attempt, files=list(files), **{**origins, **fields})


def manifest_of_node(
    node: Node, attempt: str, files: Iterable[FileEntry] = (), **fields: Any
) -> Manifest:
    """Return the manifest of a node as if it had been computed."""
    own = {
        "ref": node.ref, "stage": node.stage.name, "stage_version": node.stage.version,
        "label": node.label, "seed": node.seed, "config": node.config.model_dump(mode="json"),
        "inputs": {name: parent.ref for name, parent in node.inputs.items()},
    }  # fmt: skip
    return sample_manifest(attempt=attempt, files=files, **{**own, **fields})
