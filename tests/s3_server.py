"""A real S3 server on loopback for tests, and stores on both kinds of file system."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.server import seaweedfs
from flows.server.processes import free_port

BUCKET = "rlt-tests"


@contextmanager
def serve(folder: Path) -> Iterator[seaweedfs.S3Access]:
    """A server inside the block, with the bucket `BUCKET`."""
    port = free_port()
    command = seaweedfs.command(folder, port)
    opened = seaweedfs.access(folder, port)
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        log_file = folder / "log.txt"
        seaweedfs.wait_for_bucket(opened, BUCKET, lambda: process.poll() is None, log_file)
        yield opened
    finally:
        process.kill()
        process.wait()
