"""Kill every operation of the store before each of its steps, on a folder and on S3.

A step is an event of Python's audit hooks that changes the file system (open for writing, rename,
link, unlink, mkdir, …) or a request to S3. Operations run in forks that end with `os._exit`, as if
killed: nothing is flushed, no `finally` runs. Another fork then looks at the store, and a third one
tries again.
"""

from __future__ import annotations

import os
import pickle
import random
import shutil
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlt_core.store import Lease, Manifest, Ref, Store
from rlt_core.store import lease as leases
from rlt_core.store.transfer import copy_artifact, with_inputs

KILLED = 77
CHANGES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.utime")
"""Audit events other than `open` (os.replace raises os.rename)."""
TEXTS = {"one": "1" * 3000, "deep/two": "2" * 70_000}
"""The files of every artifact."""
OLD, NEW, DEAD, SHARDS = "0" * 16, "1" * 16, "2" * 16, "3" * 16
"""Keys: committed before, made by the operation, left by a crash, with unfinished work."""


# ---------------------------------------------------------------- forks
def forked(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in a fork of this process; None if the fork was killed.

    Raises AssertionError with the traceback if the function raises.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            answer = (True, function(*arguments))
        except BaseException:
            answer = (False, traceback.format_exc())
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == KILLED:
        return None
    done, value = pickle.loads(data)
    assert done, value
    return value


class Steps:
    """Counts the steps of this process; ends it before step `kill_at`."""

    def __init__(self, kill_at: int | None, *stores: Store) -> None:
        self.count, self._kill_at, self._lock = 0, kill_at, threading.Lock()
        sys.addaudithook(self._audit)
        for store in stores:
            if not store.files.is_local:
                store.files.fs.s3.meta.events.register("before-send.s3", self._step)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES or (
            event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        ):
            self._step()

    def _step(self, **_: object) -> None:
        with self._lock:
            if self.count == self._kill_at:
                os._exit(KILLED)
            self.count += 1


# ---------------------------------------------------------------- the store before
def attempt_of(store: Store, key: str) -> Manifest:
    """Begin an attempt and write its files; return its manifest."""
    attempt = store.begin(Ref(kind="evaluation", key=key))
    for name, text in TEXTS.items():
        (attempt.out / name).parent.mkdir(exist_ok=True)
        (attempt.out / name).write_text(text)
    now = datetime.now(UTC)
    return Manifest(
        ref=attempt.ref, attempt=attempt.id, stage="evaluation", stage_version=1,
        label=f"evaluation[{key[0]}]", profile="smoke", seed=0, config={}, inputs={},
        files=store.describe(attempt), metrics={}, packages={}, git_commit=None,
        flow_run_id=None, started_at=now, finished_at=now, seconds=0, gpu_seconds=0,
        device="cpu", threads=1,
    )  # fmt: skip


def prepare(root: str) -> None:
    """A store with an artifact and its name, a crashed attempt, and unfinished work."""
    store = Store(root)
    store.set_ref("old", store.commit(attempt_of(store, OLD)).ref)
    attempt_of(store, DEAD)
    shard(store)


def shard(store: Store, name: str = "0") -> None:
    workspace = store.workspace(SHARDS)
    if not workspace.has("shards", name):
        (workspace.begin("shards", name) / "part").write_text(TEXTS["one"])
        workspace.commit("shards", name)


# ---------------------------------------------------------------- operations
def commit(store: Store, _: Store) -> None:
    """What a stage's run does."""
    with Lease(store.files, NEW, "new", _give_up):
        if not store.manifest("evaluation", NEW):
            store.commit(attempt_of(store, NEW))


def shards(store: Store, _: Store) -> None:
    shard(store, "1")


def ref(store: Store, _: Store) -> None:
    store.set_ref("old", Ref(kind="evaluation", key=NEW))


def lease(store: Store, _: Store) -> None:
    """Take a lease, keep it for some renewals, release it."""
    leases.RENEW_S = 0.01
    with Lease(store.files, NEW, "new", _give_up):
        threading.Event().wait(0.1)


def remove(store: Store, _: Store) -> None:
    store.remove(Ref(kind="evaluation", key=OLD))


def gc(store: Store, _: Store) -> None:
    store.gc()


def push(store: Store, other: Store) -> None:
    """Copy all artifacts of the other store to this one."""
    for manifest in with_inputs(other, other.manifests())[0]:
        copy_artifact(other, store, manifest, waiting=_give_up)


def import_(store: Store, other: Store) -> None:
    """Make an artifact of a folder of the user's and name it."""
    commit(store, other)
    ref(store, other)


def _give_up(found: dict[str, object]) -> None:
    raise AssertionError(f"the lease of a killed process is live: {found}")


def leaves(store: Store) -> list[str]:
    """Return paths that are neither of an artifact, nor of unfinished work, nor names."""
    kept = {".lock", "refs/old.json"}
    for manifest in store.manifests():
        kept |= {f"{store.folder(manifest)}/{file.path}" for file in manifest.files}
        kept.add(f"artifacts/evaluation/{manifest.ref.key}.json")
    return [
        path
        for path in store.files.walk("")
        if path not in kept and not path.startswith(f"work/{SHARDS}/")
    ]


Done = Callable[[Store], bool]
OPERATIONS: dict[str, tuple[Callable[[Store, Store], None], Done]] = {
    "commit": (commit, lambda store: store.manifest("evaluation", NEW) is not None),
    "import": (import_, lambda store: store.find("old").ref.key == NEW),
    "shard": (shards, lambda store: store.workspace(SHARDS).parts("shards") == ["0", "1"]),
    "ref": (ref, lambda store: store.refs()["old"].key == NEW),
    "lease": (lease, lambda store: store.files.names(f"work/{NEW}") == []),
    "remove": (remove, lambda store: store.files.sizes(f"artifacts/evaluation/{OLD}") == {}),
    "gc": (gc, lambda store: store.orphans() == []),
    "push": (push, lambda store: store.manifest("evaluation", NEW) is not None),
    "pull": (push, lambda store: store.manifest("evaluation", NEW) is not None),
}
"""Name -> operation, and whether it is done. A pull is a push whose source is the remote store."""


# ---------------------------------------------------------------- one kill
class Trial:
    """The stores of one kill of an operation: all below a folder, or below a prefix on S3."""

    def __init__(self, name: str, folder: Path, remote: str) -> None:
        """`remote`: a folder or `s3://…` for the store that is not local in any case."""
        self.name, self.folder = name, folder
        self._operation, self._done = OPERATIONS[name]
        local = str(folder / "local")
        self._roots = (local, remote) if name == "pull" else (remote, local)

    def _stores(self) -> tuple[Store, Store]:
        os.environ["XDG_CACHE_HOME"] = str(self.folder / "cache")
        return Store(self._roots[0]), Store(self._roots[1])

    def prepare(self) -> None:
        store, other = self._stores()
        prepare(str(store))
        if self.name in ("push", "pull"):
            other.commit(attempt_of(other, NEW))

    def execute(self, kill_at: int | None) -> int:
        """Execute the operation, killed before a step; return the number of steps."""
        store, other = self._stores()
        steps = Steps(kill_at, store, other)
        self._operation(store, other)
        return steps.count

    def check(self) -> None:
        """Raises AssertionError if anything committed is lost, or anything half visible."""
        store, _ = self._stores()
        manifests = {one.ref.key: one for one in store.manifests()}
        assert OLD in manifests or self.name == "remove", "an artifact is lost"
        for manifest in manifests.values():
            assert store.verify(manifest) == [], f"{manifest.label} is visible and not whole"
            for name, text in TEXTS.items():
                assert (store.intact(manifest) / name).read_text() == text
        assert store.refs().keys() == {"old"}, "a name is lost"
        assert store.working() == {}, "a dead process holds a lease"
        workspace = store.workspace(SHARDS)
        assert "0" in workspace.parts("shards"), "a shard is lost"
        for part in workspace.parts("shards"):
            assert (workspace.path("shards", part) / "part").read_text() == TEXTS["one"]

    def again(self) -> None:
        """Raises AssertionError unless a second try completes, and `gc` leaves nothing behind."""
        store, other = self._stores()
        self._operation(store, other)
        assert self._done(store), "the second try did not complete"
        self.check()
        store.gc()
        assert not (left := leaves(store)), f"left after gc: {left}"


def kills(
    folder: Path, remote: str | None, points: int | None, choice: random.Random
) -> dict[str, Any]:
    """Kill each operation before each step, or before `points` steps at random; count."""
    tries, problems = 0, []
    for name in OPERATIONS:
        steps = None
        chosen: list[int | None] = [None]
        while chosen:
            at = chosen.pop()
            here = folder / f"{name}-{at}"
            trial = Trial(name, here, f"{remote}/{here.name}" if remote else str(here / "store"))
            try:
                forked(trial.prepare)
                done = forked(trial.execute, at)
                if steps is None:
                    steps = done
                    chosen = (
                        list(range(done))
                        if points is None
                        else choice.sample(range(done), min(points, done))
                    )
                forked(trial.check)
                forked(trial.again)
            except AssertionError as error:
                problems.append(f"{name}, killed before step {at} of {steps}: {error}")
            tries += at is not None
            shutil.rmtree(here, ignore_errors=True)
    return {"tries": tries, "problems": problems}
