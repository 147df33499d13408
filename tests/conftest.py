"""No test talks to a hub or the internet; one thread a process, and one GPU at most."""

import atexit
import gc
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from flows.server.seaweedfs import S3Access

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    DO_NOT_TRACK="1",
    MPLBACKEND="Agg",
    AWS_EC2_METADATA_DISABLED="true",
)
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # TRL's trainers refuse several in one process

with suppress(ImportError):  # infra/gpu_check.py, whose tests do not use it, has none
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "tests",
        max_examples=int(os.environ.get("FUZZ_EXAMPLES", 25)),
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    settings.load_profile("tests")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A folder's tests go to one worker, so that what they import and start late is there once;
    those that mostly wait begin first."""

    def group(item: pytest.Item) -> str:
        found = item.get_closest_marker("xdist_group")
        if not found:
            item.add_marker(found := pytest.mark.xdist_group(item.path.parent.name))
        return str(found.args[0])

    first = ("whole-runs", "server", "own-servers")
    items.sort(key=lambda item: first.index(name) if (name := group(item)) in first else len(first))


def pytest_collection_finish() -> None:
    """What is imported stays: garbage collections, of which each training has one, skip it."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # else libraries report what is left as leaks


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path, str], Path]]:
    """A function that makes a folder a disk of its own: (folder, size as in `1m`) -> folder."""
    mounted = []

    def mount(folder: Path, size: str) -> Path:
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(command).returncode:
            pytest.skip("mounting a small disk needs root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def smoke_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one finished `smoke` run, for the tests of this worker."""
    import smoke_run

    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    store = tmp_path_factory.mktemp("smoke") / "store"
    shutil.copytree(smoke_run.finished(session / "finished-smoke"), store)
    return store


@pytest.fixture(scope="session")
def s3_access(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Access]:
    """A real S3 server on loopback; the environment holds its endpoint and keys."""
    import s3_server

    with s3_server.serve(tmp_path_factory.mktemp("s3")) as access:
        os.environ.update(access.environment())
        yield access


@pytest.fixture
def s3_root(s3_access: S3Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The root of an empty store: a prefix on the S3 server; copies lie below `tmp_path`."""
    import s3_server

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"s3://{s3_server.BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(params=["local", "s3"])
def store_root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The root of an empty store: a folder, and a prefix on the S3 server."""
    if request.param == "local":
        return str(tmp_path / "a store")
    root: str = request.getfixturevalue("s3_root")
    return root
