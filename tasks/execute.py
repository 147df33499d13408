"""One stage run: a child process takes the lease, computes, validates and commits.

`execute_node` is the caller's side; `execute` runs in the child.
"""

import hashlib
import platform
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rlt_core import gpus, processes
from rlt_core.checkout import git_commit
from rlt_core.config import StageResources
from rlt_core.errors import UserError
from rlt_core.estimate import hint
from rlt_core.graph import key_of
from rlt_core.progress import Metrics, Progress, Work
from rlt_core.rows import table_files
from rlt_core.sql.schemas import TABLES
from rlt_core.stages import STAGES, Stage, parse_config
from rlt_core.store import Attempt, Lease, Manifest, Ref, Store
from tasks import distributed
from tasks.child_process import ChildFailed, ChildProcesses
from tasks.shards import seconds_elsewhere
from tasks.stage import NodeSpec, StageContext, context_of, require_one_machine, run_body

ENGINES = (
    "torch", "transformers", "tokenizers", "trl", "accelerate", "peft", "vllm", "lighteval",
    "math-verify", "numpy", "scipy", "pyarrow", "reasoning-gym",
)  # fmt: skip
"""Packages whose versions can change what a stage computes."""


def execute_node(
    spec: NodeSpec,
    children: ChildProcesses,
    on_progress: Callable[[int, int, Metrics], None],
    on_line: Callable[[str], None],
) -> Manifest | None:
    """Compute a node in a child process and return the committed manifest; None for a run that
    shares the node with the run that commits it.

    `on_progress` receives (units done, total units, metrics), `on_line` each line that the child
    prints. Raises UserError, Stopped or ChildFailed; finished work stays in the key's workspace.
    """
    store = Store(spec.store)
    name = "log.txt" if spec.machine == 0 else f"log-{spec.machine}.txt"
    log = store.files.local(f"work/{spec.key}/{name}")
    try:
        manifest = children.execute(
            "tasks.execute:execute",
            spec.model_dump(mode="json"),
            log=log,
            on_progress=on_progress,
            on_line=on_line,
        )
    except UserError:
        if spec.machine == 0:
            store.forget(spec.key)
        raise
    except ChildFailed as error:
        if error.killed:
            raise ChildFailed(
                f"{spec.name} was killed (SIGKILL), as the kernel does when memory runs out; it "
                f"takes less with {hint(STAGES[spec.stage], spec.resources)}. Its log: {log}"
            ) from None
        raise
    return Manifest.model_validate_json(manifest) if manifest else None


# ---------------------------------------------------------------- in the child process
def execute(argument: dict[str, Any], progress: Progress) -> str | None:
    """Compute and commit a node, or share the work on one that another run commits.

    Returns the manifest as JSON, None for a shared node. Raises UserError when the key differs from
    the expected one or an input is not committed or damaged, and whatever the stage raises; Stopped
    leaves checkpoints behind.
    """
    processes.be_alone()
    spec = NodeSpec.model_validate(argument)
    stage, config = STAGES[spec.stage], parse_config(spec.stage, spec.config)
    own = key_of(stage, config, {name: ref.key for name, ref in spec.inputs.items()})
    if own != spec.key:
        raise UserError(
            f"{spec.name}: expected key {spec.key}, this installation computes {own}; "
            "sender and worker run different versions"
        )
    if not spec.sent:
        require_one_machine(spec.name, stage, spec.resources)
    if spec.machine == 0:
        return compute(spec, progress).model_dump_json()
    share_work(spec, progress)
    return None


def compute(spec: NodeSpec, progress: Progress) -> Manifest:
    """Compute and commit a node, or return the manifest that another run committed meanwhile."""
    stage, store, work = STAGES[spec.stage], Store(spec.store), Work()

    def report(done: int, total: int, metrics: Metrics) -> None:
        work.reached(done, total, metrics)
        progress.report(done, total, metrics)

    def waiting(_: dict[str, object]) -> None:
        progress.report(0, 0, {})
        progress.check()

    with Lease(store.files, spec.key, spec.name, waiting, work.note):
        if (committed := store.manifest(stage.kind, spec.key)) is not None:
            return committed
        store.files.write(f"work/{spec.key}/node.txt", spec.name.encode())
        with alone_on_server(spec, store, waiting):
            _hold_gpus(spec, stage, progress)
            attempt = store.begin(Ref(kind=stage.kind, key=spec.key))
            started = datetime.now(UTC)
            try:
                seen = Progress(report, progress.should_stop)
                ctx = context_of(spec, store, attempt.out, seen)
                metrics = _body(ctx, f"{spec.key}: attempt {attempt.id}")
                _validate(stage, attempt)
                return store.commit(_manifest(ctx, attempt, metrics, started))
            except BaseException:
                if store.manifest(stage.kind, spec.key) is None:
                    store.abandon(attempt)
                raise


def share_work(spec: NodeSpec, progress: Progress) -> None:
    """Share the work on a node that another run commits, until nothing is left to share."""
    store = Store(spec.store)
    with tempfile.TemporaryDirectory(prefix="rlt-") as folder:
        _hold_gpus(spec, STAGES[spec.stage], progress)
        ctx = context_of(spec, store, Path(folder), progress)
        if not ctx.is_committed():
            _body(ctx, f"{spec.key}: its work is shared")


def alone_on_server(
    spec: NodeSpec, store: Store, waiting: Callable[[dict[str, object]], None]
) -> AbstractContextManager[object]:
    """Let one training at a time use a `vllm serve`, which holds the weights of one model and
    accepts every client: a second training would sample from the first one's policy, or wait for
    its NCCL for ever."""
    server = spec.resources.vllm_server
    if server is None or spec.resources.engine != "vllm" or not STAGES[spec.stage].rollouts:
        return nullcontext()
    key = hashlib.sha256(server.encode()).hexdigest()[:16]
    return Lease(store.files, f"vllm-{key}", f"{server} ({spec.name})", waiting)


def _hold_gpus(spec: NodeSpec, stage: Stage, progress: Progress) -> None:
    """Take GPUs for the node once they are free; give up after SHARED_WAIT_S where the node's other
    machines wait meanwhile and hold theirs."""
    if spec.on_gpu:
        together = stage.shared == "steps" and stage.machines(spec.resources) > 1
        gpus.hold(stage.gpus(spec.resources), progress, gpus.SHARED_WAIT_S if together else None)


def _body(ctx: StageContext, what: str) -> dict[str, float]:
    """Run the stage's body in the processes of this machine."""
    count = ctx.stage.processes(ctx.resources)
    together = count > 1 or (ctx.stage.shared == "steps" and ctx.machines > 1)
    if ctx.stage.pool == "gpu":
        processes.require_gpus(ctx.resources, ctx.stage.gpus(ctx.resources))
        if not together:
            processes.take_gpus(ctx.resources, ctx.stage.gpus_of_each(ctx.resources))
    print(
        f"{what} on {_device(ctx.stage, ctx.resources)}, machine {ctx.machine + 1} of "
        f"{ctx.machines}, processes: {count}, threads of each: {ctx.resources.threads}"
    )
    if not together:
        return run_body(ctx)
    try:
        return distributed.run(ctx)
    except distributed.ProcessDied as error:
        fix = hint(ctx.stage, ctx.resources)
        raise distributed.ProcessDied(
            f"{error}; if memory ran out, it takes less with {fix}"
        ) from None


def _validate(stage: Stage, attempt: Attempt) -> None:
    """Raise RuntimeError unless the declared tables and model are there, with their columns."""
    for table in stage.tables:
        files = table_files(attempt.out, table)
        if not files:
            raise RuntimeError(f"{stage.name} left no table {table}")
        for file in files:
            if not pq.read_schema(file).equals(TABLES[table]):
                raise RuntimeError(f"{stage.name}: {file.name} lacks the columns of {table}")
    if stage.model and not (attempt.out / "model" / "config.json").is_file():
        raise RuntimeError(f"{stage.name} left no model")


def _manifest(
    ctx: StageContext, attempt: Attempt, metrics: Mapping[str, float], started: datetime
) -> Manifest:
    stage = ctx.stage
    finished = datetime.now(UTC)
    seconds = (finished - started).total_seconds()
    device = _device(stage, ctx.resources)
    return Manifest(
        ref=attempt.ref,
        attempt=attempt.id,
        stage=stage.name,
        stage_version=stage.version,
        label=ctx.spec.label,
        profile=ctx.spec.profile,
        seed=ctx.spec.seed,
        config=ctx.config.model_dump(mode="json"),
        inputs=ctx.spec.inputs,
        files=ctx.store.describe(attempt),
        metrics={name: float(value) for name, value in metrics.items()},
        packages=_packages(),
        git_commit=git_commit(),
        flow_run_id=ctx.spec.flow_run_id,
        started_at=started,
        finished_at=finished,
        seconds=seconds,
        gpu_seconds=0.0 if device == "cpu" else _gpu_seconds(ctx, seconds),
        device=device,
        threads=ctx.resources.threads * stage.processes(ctx.resources),
    )


def _gpu_seconds(ctx: StageContext, seconds: float) -> float:
    """GPU-seconds of all machines; a machine that shared shards counts the time of its shards."""
    gpus = ctx.stage.gpus(ctx.resources)
    if ctx.machines == 1:
        return seconds * gpus
    if ctx.stage.shared == "steps":
        return seconds * gpus * ctx.machines
    return seconds * gpus + seconds_elsewhere(ctx) * gpus / ctx.stage.processes(ctx.resources)


def _packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ENGINES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _device(stage: Stage, resources: StageResources) -> str:
    if stage.pool == "cpu":
        return "cpu"
    from rlt_core.models import pick_device

    return pick_device(resources.device)
