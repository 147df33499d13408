"""One stage run, inside the process that computes: check → compute → validate → commit."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq

from rlt_core.checkout import git_commit
from rlt_core.config import Frozen, StageResources
from rlt_core.control import Control
from rlt_core.errors import UserError
from rlt_core.graph import key_of
from rlt_core.rows import table_files
from rlt_core.schemas import TABLES
from rlt_core.stages import STAGES, Stage, parse_config
from rlt_core.store import Attempt, Lease, Manifest, Ref, Store, Workspace
from tasks.spec import NodeSpec

ENGINES = (
    "torch", "transformers", "tokenizers", "trl", "accelerate", "peft", "vllm", "lighteval",
    "math-verify", "numpy", "scipy", "pyarrow", "reasoning-gym",
)  # fmt: skip
"""Packages whose versions can change what a stage computes."""

Config = TypeVar("Config", bound=Frozen)


@dataclass(frozen=True)
class Job:
    """What a stage's body works with."""

    spec: NodeSpec
    config: Frozen
    manifests: Mapping[str, Manifest]
    """The inputs, by name."""
    store: Store
    out: Path
    """Where the artifact's files go."""
    work: Workspace
    control: Control

    @property
    def resources(self) -> StageResources:
        """Where and how fast."""
        return self.spec.resources

    @property
    def seed(self) -> int:
        """The training seed; 0 for a node that all seeds share."""
        return self.spec.seed or 0

    def config_as(self, kind: type[Config]) -> Config:
        """The stage's config, typed."""
        assert isinstance(self.config, kind)
        return self.config

    def folder(self, name: str) -> Path:
        """Local folder of an input, its hashes checked. Raises UserError for a damaged file."""
        return self.store.intact(self.manifests[name])

    def tables(self, name: str) -> Path:
        """Local folder with an input's Parquet files alone, their hashes checked."""
        return self.store.intact(self.manifests[name], ".parquet")

    def model(self, name: str) -> Path:
        """Local model folder of an input."""
        return self.folder(name) / "model"

    def key(self, name: str) -> str:
        """Key of an input."""
        return self.manifests[name].ref.key


def compute(argument: dict[str, Any], control: Control) -> str:
    """Compute and commit a node, or find it committed by another; returns its manifest as JSON.

    Raises UserError when the key differs from the expected one, an input is not committed or
    damaged, and whatever the stage raises; Stopped leaves checkpoints behind.
    """
    spec = NodeSpec.model_validate(argument)
    stage = STAGES[spec.stage]
    config = parse_config(spec.stage, spec.config)
    own = key_of(stage, config, {name: ref.key for name, ref in spec.inputs.items()})
    if own != spec.key:
        raise UserError(
            f"{spec.name}: expected key {spec.key}, this installation computes {own}; "
            "sender and worker run different versions"
        )
    store = Store(spec.store)

    def waiting(_: dict[str, object]) -> None:
        control.progress(0, 0, {})
        control.check()

    with Lease(store.files, spec.key, spec.name, waiting):
        standing = store.manifest(stage.kind, spec.key)
        if standing is None:
            store.files.write(f"work/{spec.key}/node.txt", spec.name.encode())
            standing = _compute_and_commit(spec, stage, config, store, control)
    return standing.model_dump_json()


def _compute_and_commit(
    spec: NodeSpec, stage: Stage, config: Frozen, store: Store, control: Control
) -> Manifest:
    _use_threads(stage, spec.resources.threads)
    manifests = {}
    for name, ref in spec.inputs.items():
        manifest = store.manifest(ref.kind, ref.key)
        if manifest is None:
            raise UserError(f"{spec.name}: its input {name} ({ref.key}) is not in {store}")
        manifests[name] = manifest
    attempt = store.begin(Ref(kind=stage.kind, key=spec.key))
    started = datetime.now(UTC)
    threads = spec.resources.threads
    print(
        f"{spec.key}: attempt {attempt.id} on {_device(stage, spec.resources)}, {threads} threads"
    )
    job = Job(spec, config, manifests, store, attempt.out, store.workspace(spec.key), control)
    try:
        metrics = importlib.import_module(stage.module).run(job)
        _validate(stage, attempt)
        return store.commit(_manifest(job, stage, attempt, metrics, started))
    except BaseException:
        if store.manifest(stage.kind, spec.key) is None:
            store.abandon(attempt)
        raise


def _validate(stage: Stage, attempt: Attempt) -> None:
    """The declared tables and model are there, with the declared columns."""
    for table in stage.tables:
        files = table_files(attempt.out, table)
        if not files:
            raise RuntimeError(f"{stage.name} left no table {table}")
        for file in files:
            if not pq.read_schema(file).equals(TABLES[table]):
                raise RuntimeError(f"{stage.name}: {file.name} has not the columns of {table}")
    if stage.model and not (attempt.out / "model" / "config.json").is_file():
        raise RuntimeError(f"{stage.name} left no model")


def _manifest(
    job: Job, stage: Stage, attempt: Attempt, metrics: Mapping[str, float], started: datetime
) -> Manifest:
    finished = datetime.now(UTC)
    seconds = (finished - started).total_seconds()
    device = _device(stage, job.resources)
    return Manifest(
        ref=attempt.ref,
        attempt=attempt.id,
        stage=stage.name,
        stage_version=stage.version,
        label=job.spec.label,
        profile=job.spec.profile,
        seed=job.spec.seed,
        config=job.config.model_dump(mode="json"),
        inputs=job.spec.inputs,
        files=job.store.describe(attempt),
        metrics={name: float(value) for name, value in metrics.items()},
        packages=_packages(),
        git_commit=git_commit(),
        flow_run_id=job.spec.flow_run_id,
        started_at=started,
        finished_at=finished,
        seconds=seconds,
        gpu_seconds=0.0 if device == "cpu" else seconds,
        device=device,
        threads=job.resources.threads,
    )


def _packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ENGINES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _device(stage: Stage, resources: StageResources) -> str:
    if stage.pool == "cpu":
        return "cpu"
    from rlt_core.models import pick_device

    return pick_device(resources.device)


def _use_threads(stage: Stage, threads: int) -> None:
    if stage.pool == "gpu":
        from rlt_core.models import use_threads

        use_threads(threads)
