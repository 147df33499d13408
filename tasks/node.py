"""One node: a hit in the store, or a child that computes it."""

from __future__ import annotations

from collections.abc import Callable

from rlt_core.errors import UserError
from tasks.child_process import Launches
from rlt_core.progress import Metrics
from rlt_core.stages import STAGES
from rlt_core.store import Manifest, Store
from tasks.spec import NodeSpec


def find(spec: NodeSpec) -> Manifest | None:
    """The committed artifact of a node, if there is one."""
    return Store(spec.store).manifest(STAGES[spec.stage].kind, spec.key)


def run(
    spec: NodeSpec,
    launcher: Launches,
    progress: Callable[[int, int, Metrics], None],
    say: Callable[[str], None],
) -> Manifest:
    """Compute a node in a child and return what was committed.

    `progress` hears (units done, units in all, metrics), `say` each line that the child prints.
    Raises UserError, Stopped or ChildFailed; what was done is kept in the key's workspace.
    """
    store = Store(spec.store)
    try:
        manifest = launcher.run(
            "tasks.execute:compute",
            spec.model_dump(mode="json"),
            log=store.files.local(f"work/{spec.key}/log.txt"),
            progress=progress,
            say=say,
        )
    except UserError:
        store.forget(spec.key)
        raise
    return Manifest.model_validate_json(manifest)


def assist(
    spec: NodeSpec,
    launcher: Launches,
    progress: Callable[[int, int, Metrics], None],
    say: Callable[[str], None],
) -> None:
    """Share the work on a node that another run commits, in a child; see `run`."""
    launcher.run(
        "tasks.execute:assist",
        spec.model_dump(mode="json"),
        log=Store(spec.store).files.local(f"work/{spec.key}/log-{spec.machine}.txt"),
        progress=progress,
        say=say,
    )
