"""A real S3 server on loopback for tests, and stores on both kinds of file system."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.local import s3

BUCKET = "rlt-tests"


@contextmanager
def serve(folder: Path) -> Iterator[s3.S3Access]:
    """A server inside the block, with the bucket `BUCKET`."""
    port = s3.free_port()
    command = s3.command(folder, port)
    opened = s3.access(folder, port)
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        s3.wait_ready(opened, lambda: process.poll() is None)
        s3.make_bucket(opened, BUCKET)
        yield opened
    finally:
        process.kill()
        process.wait()
