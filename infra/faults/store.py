"""Kill every operation of the store before each of its steps, on a folder and on S3.

A step is an audit event of Python that changes the file system (open for writing, rename, link,
unlink, mkdir, …) or a request to S3. An operation runs in a fork that ends with `os._exit`, as if
killed: nothing is flushed, no `finally` runs. Another fork looks at the store and tries again.
"""

import os
import pickle
import random
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import rlt_core.store.s3_files  # noqa: F401 (imported once, and not in each fork)
from infra.faults.tally import Failed, Lost, Tally, require
from infra.sample_manifest import sample_manifest
from rlt_core.store import Lease, Manifest, Ref, Store, files
from rlt_core.store import lease as leases
from rlt_core.store.transfer import copy_artifact, with_inputs

KILLED = 77
CHANGES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.utime")
"""Audit events other than `open`; os.replace is one of os.rename."""
FILES = {"one": "1" * 3000, "deep/two": "2" * 70_000}
"""The content of every artifact."""
OLD, NEW, DEAD, SHARDS = (digit * 16 for digit in "0123")
"""Keys: committed before, made by the operation, left by a crash, with unfinished work."""


# ---------------------------------------------------------------- forks
def forked(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in a fork of this process; None if the fork was killed.
    Raises Lost or Failed as the function does."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        answer: tuple[type[Exception] | None, Any]
        try:
            answer = None, function(*arguments)
        except Exception as error:
            kind = Lost if isinstance(error, Lost) else Failed
            answer = kind, str(error) if kind is Lost else traceback.format_exc()
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == KILLED:
        return None
    kind, value = pickle.loads(data)
    if kind:
        raise kind(value)
    return value


class Steps:
    """Counts the steps of this process from now on; ends it before step `kill_at`."""

    def __init__(self, kill_at: int | None, *stores: Store) -> None:
        self.count, self._kill_at, self._lock = 0, kill_at, threading.Lock()
        sys.addaudithook(self._audit)
        for store in stores:
            if not store.files.is_local:
                store.files.fs.s3.meta.events.register("before-send.s3", self._step)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        written = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if written or event in CHANGES:
            self._step()

    def _step(self, **_: object) -> None:
        with self._lock:
            if self.count == self._kill_at:
                os._exit(KILLED)
            self.count += 1


# ---------------------------------------------------------------- operations
def attempt_of(store: Store, key: str) -> Manifest:
    """Begin an attempt and write its files; return its manifest."""
    attempt = store.begin(ref_of(key))
    for name, text in FILES.items():
        (attempt.out / name).parent.mkdir(exist_ok=True)
        (attempt.out / name).write_text(text)
    files = store.describe(attempt)
    return sample_manifest(attempt.ref, attempt.id, files, label=f"evaluation[{key[0]}]")


def ref_of(key: str) -> Ref:
    return Ref(kind="evaluation", key=key)


def _give_up(found: dict[str, object]) -> None:
    raise Failed(f"the lease of a killed process is live: {found}")


def commit(store: Store, _: Store) -> None:
    """What a stage does."""
    with Lease(store.files, NEW, "new", _give_up):
        if not store.manifest("evaluation", NEW):
            store.commit(attempt_of(store, NEW))


def import_(store: Store, other: Store) -> None:
    """What a run of one node does: commit, and name the artifact."""
    commit(store, other)
    store.set_ref("old", ref_of(NEW))


def shard(store: Store, name: str) -> None:
    """Commit a shard, unless it is there."""
    workspace = store.workspace(SHARDS)
    if not workspace.has("shards", name):
        (workspace.begin("shards", name) / "part").write_text(FILES["one"])
        workspace.commit("shards", name)


def lease(store: Store, _: Store) -> None:
    """Take a lease, renew it some times, release it."""
    leases.RENEW_S = 0.02
    with Lease(store.files, NEW, "new", _give_up):
        time.sleep(0.1)


def copy(store: Store, other: Store) -> None:
    """Copy all artifacts of the other store to this one: `push` and `pull`."""
    for manifest in with_inputs(other, other.manifests())[0]:
        copy_artifact(other, store, manifest, waiting=_give_up)


def has_new(store: Store) -> bool:
    return store.manifest("evaluation", NEW) is not None


OPERATIONS: dict[str, tuple[Callable[[Store, Store], object], Callable[[Store], bool]]] = {
    "commit": (commit, has_new),
    "import": (import_, lambda store: has_new(store) and store.refs()["old"].key == NEW),
    "shard": (
        lambda store, _: shard(store, "1"),
        lambda store: store.workspace(SHARDS).parts("shards") == ["0", "1"],
    ),
    "ref": (
        lambda store, _: store.set_ref("old", ref_of(NEW)),
        lambda store: store.refs()["old"].key == NEW,
    ),
    "lease": (lease, lambda store: store.files.read(f"work/{NEW}/lease.json") is None),
    "remove": (
        lambda store, _: store.remove(ref_of(OLD)),
        lambda store: not store.files.sizes(f"artifacts/evaluation/{OLD}"),
    ),
    "gc": (lambda store, _: store.gc(), lambda store: not store.orphans()),
    "push": (copy, has_new),
    "pull": (copy, has_new),
}
"""Name -> operation, and whether it is done."""


# ---------------------------------------------------------------- one kill
class Trial:
    """The stores of one kill: a local one, and one that is a folder or below `s3://…`."""

    def __init__(self, operation: str, folder: Path, other: str) -> None:
        self.name, self._folder = operation, folder
        self._operation, self._done = OPERATIONS[operation]
        local = str(folder / "local")
        self._roots = (local, other) if operation == "pull" else (other, local)

    def _stores(self) -> tuple[Store, Store]:
        os.environ["XDG_CACHE_HOME"] = str(self._folder / "cache")
        return Store(self._roots[0]), Store(self._roots[1])

    def execute(self, kill_at: int | None) -> int:
        """Prepare the stores and execute the operation, killed before a step; return the number
        of steps."""
        store, other = self._stores()
        store.set_ref("old", store.commit(attempt_of(store, OLD)).ref)
        attempt_of(store, DEAD)
        shard(store, "0")
        if self.name in ("push", "pull"):
            other.commit(attempt_of(other, NEW))
        steps = Steps(kill_at, store, other)
        self._operation(store, other)
        return steps.count

    def check_and_repeat(self) -> None:
        """Raises Lost if something is lost, Failed unless a second try completes."""
        setattr(files, "LEFT_S", 0.0)  # noqa: B010 (gc takes what a crash left for being written)
        store, other = self._stores()
        self._check(store)
        self._operation(store, other)
        if not self._done(store):
            raise Failed("the second try did not complete")
        store.gc()
        self._check(store)
        if left := leftovers(store):
            raise Failed(f"left after gc: {left}")

    def _check(self, store: Store) -> None:
        manifests = {manifest.ref.key: manifest for manifest in store.manifests()}
        require(OLD in manifests or self.name == "remove", "an artifact is gone")
        for manifest in manifests.values():
            require_whole(store, manifest)
        require(store.refs().keys() == {"old"}, "a name is gone")
        require(store.working() == {}, "a dead process holds a lease")
        workspace = store.workspace(SHARDS)
        require("0" in workspace.parts("shards"), "a shard is gone")
        for part in workspace.parts("shards"):
            text = (workspace.path("shards", part) / "part").read_text()
            require(text == FILES["one"], f"shard {part} is not whole")


def require_whole(store: Store, manifest: Manifest) -> None:
    """Raises Lost unless a visible artifact is as it was committed."""
    found = {entry.path for entry in manifest.files}
    require(found == FILES.keys(), f"{manifest.label} lists {found}")
    require(store.verify(manifest) == [], f"{manifest.label} is visible and not whole")


def leftovers(store: Store) -> list[str]:
    """Return paths that belong to no artifact, name or unfinished work."""
    kept = {"refs/old.json"}
    for manifest in store.manifests():
        kept |= {f"{store.folder(manifest)}/{file.path}" for file in manifest.files}
        kept.add(f"artifacts/evaluation/{manifest.ref.key}.json")
    tops = ("artifacts", "refs", "work")
    found = [f"{top}/{path}" for top in tops for path in store.files.walk(top)]
    return [path for path in found if path not in kept and f"work/{SHARDS}/" not in path]


def kills(
    tally: Tally, names: Iterable[str], folder: Path, s3: str | None, points: int | None,
    choice: random.Random,
) -> None:  # fmt: skip
    """Kill operations before each of their steps, or before `points` of them at random. `s3`: where
    the stores are, if not below the folder."""
    for name in names:

        def trial(kill_at: int | None, name: str = name) -> int:
            here = folder / f"{tally.part}-{name}-{kill_at}"
            one = Trial(name, here, f"{s3}/{here.name}" if s3 else str(here / "other"))
            count = forked(one.execute, kill_at)
            if kill_at is not None:
                forked(one.check_and_repeat)
            shutil.rmtree(here, ignore_errors=True)
            return count or 0

        steps = 0
        with tally.trial(f"{name}, not killed", tries=0):
            steps = trial(None)
        for kill_at in choice.sample(range(steps), min(points or steps, steps)):
            with tally.trial(f"{name}, killed before step {kill_at} of {steps}"):
                trial(kill_at)
