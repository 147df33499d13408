"""Attempts and manifests for tests of the store."""

from __future__ import annotations

from datetime import UTC, datetime

from rlt_core.store import Attempt, Manifest, Ref, Store

KEY = "abc1230000000000"


def key(start: str) -> str:
    """A key with this beginning."""
    return start.ljust(16, "0")


def manifest_of(store: Store, attempt: Attempt) -> Manifest:
    now = datetime.now(UTC)
    return Manifest(
        ref=attempt.ref, attempt=attempt.id, stage="evaluation", stage_version=1,
        label="evaluation[x]", profile="tiny", seed=0, config={"a": 1}, inputs={},
        files=store.describe(attempt), metrics={}, packages={}, git_commit=None,
        flow_run_id=None, started_at=now, finished_at=now, seconds=0, gpu_seconds=0,
        device="cpu", threads=1,
    )  # fmt: skip


def attempt_with(store: Store, text: str, key: str = KEY) -> Attempt:
    attempt = store.begin(Ref(kind="evaluation", key=key))
    (attempt.out / "deep").mkdir()
    (attempt.out / "deep" / "file.txt").write_text(text)
    return attempt


def committed(store: Store, text: str, key: str = KEY, **inputs: Manifest) -> Manifest:
    attempt = attempt_with(store, text, key)
    refs = {name: manifest.ref for name, manifest in inputs.items()}
    return store.commit(manifest_of(store, attempt).model_copy(update={"inputs": refs}))
