"""A real S3 server on loopback, for benchmarks, the fault harness and tests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from flows.server import seaweedfs
from flows.server.processes import free_port


@contextmanager
def serve(
    folder: Path, bucket: str, wait: Callable[..., object] = seaweedfs.wait_for_bucket
) -> Iterator[seaweedfs.S3Access]:
    """Run a server with a bucket inside the block. `wait` gets the arguments of its default."""
    folder.mkdir(exist_ok=True)
    access = seaweedfs.access(folder, free_port())
    command = seaweedfs.command(folder, int(access.endpoint.rpartition(":")[2]))
    with (folder / "log.txt").open("wb") as log:
        server = psutil.Popen(command, stdout=log, stderr=log, cwd=folder)
    process = psutil.Process(server.pid)

    def alive() -> bool:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE

    try:
        wait(access, bucket, alive, folder / "log.txt")
        yield access
    finally:
        server.kill()
        server.wait()
