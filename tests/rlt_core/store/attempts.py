"""Attempts and manifests for tests of the store."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from infra.sample_manifest import sample_manifest
from rlt_core.store import Attempt, Manifest, Ref, Store

Result = TypeVar("Result")
KEY = "abc1230000000000"


def key(start: str) -> str:
    """A key with this beginning."""
    return start.ljust(16, "0")


def manifest_of(store: Store, attempt: Attempt) -> Manifest:
    return sample_manifest(
        attempt.ref, attempt.id, store.describe(attempt), config={"a": 1}, profile="tiny"
    )


def at_once(count: int, function: Callable[[int], Result]) -> list[Result]:
    """What `function(number)` returns in so many threads that begin together."""
    start = threading.Barrier(count)

    def run(number: int) -> Result:
        start.wait()
        return function(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def attempt_with(store: Store, text: str, key: str = KEY) -> Attempt:
    attempt = store.begin(Ref(kind="evaluation", key=key))
    (attempt.out / "deep").mkdir()
    (attempt.out / "deep" / "file.txt").write_text(text)
    return attempt


def committed(store: Store, text: str, key: str = KEY, **inputs: Manifest) -> Manifest:
    attempt = attempt_with(store, text, key)
    refs = {name: manifest.ref for name, manifest in inputs.items()}
    return store.commit(manifest_of(store, attempt).model_copy(update={"inputs": refs}))


def race(root: str, number: int, start: object, results: object) -> None:
    """Commit beside other processes, with copies of one's own; tell who has won."""
    store = Store(root, Path(os.environ["XDG_CACHE_HOME"]) / str(number))
    attempt = attempt_with(store, str(number))
    start.wait()
    standing = store.commit(manifest_of(store, attempt))
    text = (store.intact(standing) / "deep/file.txt").read_text()
    results.put((number, standing.attempt == attempt.id, standing.attempt, text))
