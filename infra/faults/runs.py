"""Whole runs under `smoke`: killed at random times, on an S3 that fails, beside other commands."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from flows.server.processes import MARK, Processes
from infra.faults.store import attempt_of, forked, ref_of, require_whole
from infra.faults.tally import Failed, Tally, require
from rlt_core.store import Lease, Store
from rlt_core.store.transfer import CopyFailed, copy_artifact

RLT = [sys.executable, "-m", "flows.cli.app"]
COMPARED = ("model/", "traces", "scores", "eval_samples", "questions")
"""Files whose bytes depend on the key only."""
ROLES = ("commit", "commit", "remove", "gc", "push", "name")
KEYS = [f"{number:016x}" for number in range(4)]
END_S = 90.0
"""Seconds in which all processes of a killed run must have ended."""
RUN_S = 1800.0
"""No run takes longer, unless it hangs."""

Contents = dict[tuple[str, str], str]


def contents(root: str) -> Contents:
    """Return the hash of each model and table of a store, by key and path. Raises Lost if one is
    damaged."""
    store = Store(root)
    found = {}
    for manifest in store.manifests():
        require(store.verify(manifest) == [], f"{manifest.label} is damaged")
        for file in manifest.files:
            if file.path.startswith(COMPARED):
                found[manifest.ref.key, file.path] = file.sha256
    return found


def require_same(found: Contents, reference: Contents) -> None:
    """Raises Lost if a file of an undisturbed run is missing or has other bytes."""
    different = [path for path, digest in reference.items() if found.get(path) != digest]
    require(not different, f"not as in an undisturbed run: {different}")


def kind_of(process: psutil.Process) -> str:
    """Return what a process does; `other` for one that has ended."""
    kinds = {
        "app worker": "worker", "prefect.engine": "flow run", "prefect server": "server",
        "app run": "command",
    }  # fmt: skip
    with suppress(psutil.Error):
        line, parent = " ".join(process.cmdline()), process.parent()
        if is_fork(line):
            above = " ".join(parent.cmdline()) if parent else ""
            return "computation" if is_fork(above) else "fork server"
        return next((kind for part, kind in kinds.items() if part in line), "other")
    return "other"


def is_fork(line: str) -> bool:
    return "forkserver" in line or "fork_server" in line


class Runs:
    """`rlt run full-pipeline`, with all its files below a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.processes = Processes(folder)
        homes = {"RLT_HOME": "home", "PREFECT_HOME": "prefect", "XDG_CACHE_HOME": "cache"}
        self._own = {name: str(folder / part) for name, part in homes.items()}
        self._command = [*RLT, "run", "full-pipeline", "--profile", "smoke"]

    def start(self, store: str, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [*self._command, "--store", store, *words], stdout=log, stderr=log,
                env=os.environ | self._own | {MARK: str(self.folder), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def require_done(self, *started: subprocess.Popen[bytes]) -> None:
        """Raises Failed unless these end with status 0."""
        if any([process.wait(RUN_S) for process in started]):
            raise Failed(f"rlt run failed:\n{(self.folder / 'log.txt').read_text()[-3000:]}")

    def reference(self) -> Contents:
        """Return the contents of the store of an undisturbed run."""
        store = str(self.folder / "undisturbed")
        self.require_done(self.start(store))
        return contents(store)

    def kill(self, tally: Tally, kills: int, mean_s: float, choice: random.Random) -> Contents:
        """Repeat the command until it completes, and kill a process of it about every `mean_s`
        seconds; remove a part of what it has made if that was too few kills."""
        root = str(self.folder / "killed")
        store, before = Store(root), dict[str, str]()
        while True:
            process, deadline = self.start(root), time.monotonic() + RUN_S
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise Failed("rlt run hangs")
                with suppress(subprocess.TimeoutExpired):
                    process.wait(choice.expovariate(1 / mean_s))
                if tally.tries < kills and (victims := self.processes.marked()):
                    with suppress(psutil.NoSuchProcess):
                        choice.choice(victims).kill()
                        tally.tries += 1
            now = {manifest.ref.key: manifest.attempt for manifest in store.manifests()}
            require(before.items() <= now.items(), "what was committed was made again")
            before = now
            if process.returncode == 0 and tally.tries >= kills:
                return contents(root)
            if process.returncode == 0:
                for manifest in choice.sample(store.manifests(), len(before) // 2):
                    store.remove(manifest.ref)
                    del before[manifest.ref.key]

    def require_ended(self) -> None:
        """Raises Failed if processes are left behind."""
        deadline = time.monotonic() + END_S
        while left := self.processes.marked():
            if time.monotonic() > deadline:
                lines = [" ".join(one.cmdline()) for one in left]
                self.processes.stop_others(0)
                raise Failed(f"left behind: {lines}")
            time.sleep(1)


# ---------------------------------------------------------------- side by side
def busy(root: str, target: str, role: str, seconds: float, seed: int) -> int:
    """Do one thing to a store again and again; return how often."""
    store, other, choice = Store(root), Store(target), random.Random(seed)
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        ref = ref_of(choice.choice(KEYS))
        if role == "commit":
            with Lease(store.files, ref.key):
                if not store.manifest(ref.kind, ref.key):
                    store.commit(attempt_of(store, ref.key))
        elif role == "remove":
            store.remove(ref)
            time.sleep(0.05)
        elif role == "gc":
            store.gc()
        elif role == "push":
            for manifest in store.manifests():
                with suppress(CopyFailed):  # removed meanwhile
                    copy_artifact(store, other, manifest)
        else:
            store.set_ref("race", ref)
            store.refs(), store.working(), store.unfinished()
        count += 1
    return count


@contextmanager
def beside(tally: Tally, root: str, target: str, seconds: float) -> Iterator[None]:
    """Keep other processes busy with the same store; count what they have done."""
    with ThreadPoolExecutor(len(ROLES)) as pool:
        others = [
            pool.submit(forked, busy, root, target, role, seconds, seed)
            for seed, role in enumerate(ROLES)
        ]
        yield
    for role, one in zip(ROLES, others, strict=True):
        with tally.trial(f"{role}, beside others", tries=0):
            tally.tries += one.result()
    for place in (root, target):
        with tally.trial(f"after all, {place}", tries=0):
            forked(require_all_whole, place)


def require_all_whole(root: str) -> None:
    """Raises Lost unless all visible artifacts of `KEYS` are whole."""
    store = Store(root)
    for manifest in store.manifests():
        if manifest.ref.key in KEYS:
            require_whole(store, manifest)
