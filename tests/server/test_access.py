"""Other users of the machine, and other pages of a browser, reach nothing of `rlt up`."""

import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from flows.server.processes import free_port
from flows.server.seaweedfs import S3Access
from rlt_core.errors import UserError
from rlt_core.private import home, private_folder
from tests.server.conftest import Server


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_api_takes_its_owner_alone(server: Server) -> None:
    secret = server.login["PREFECT_API_AUTH_STRING"]
    user, _, password = secret.partition(":")
    asked = {"json": {}, "timeout": 30.0}
    for auth in (None, (user, "guessed"), ("", "")):
        for path in ("flows/filter", "deployments/filter", "block_documents/filter"):
            assert httpx.post(f"{server.api}/{path}", auth=auth, **asked).status_code == 401
        assert httpx.get(f"{server.api}/docs", auth=auth).status_code in (401, 404)
    assert httpx.post(f"{server.api}/flows/filter", auth=(user, password), **asked).is_success
    shell = {name: v for name, v in server.environment.items() if not name.startswith("RLT_")}
    command = [sys.executable, "-m", "prefect", "work-pool", "ls"]
    listed = subprocess.run(command, capture_output=True, text=True, env=shell)
    assert listed.returncode == 0 and "gpu" in listed.stdout, "`prefect` of the same user goes on"


@pytest.mark.parametrize("origin", ["http://127.0.0.1:1", "http://evil.example", "null"])
def test_a_page_of_another_origin_is_refused(server: Server, origin: str) -> None:
    headers = {
        "Origin": origin, "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }  # fmt: skip
    url = f"{server.api}/flow_runs/"
    refused = httpx.options(url, headers=headers)
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers
    for own in (f"http://127.0.0.1:{server.port}", f"http://localhost:{server.port}"):
        assert httpx.options(url, headers={**headers, "Origin": own}).status_code == 200


def test_secrets_are_in_private_files_alone(server: Server, up_again: str) -> None:
    secret = server.login["PREFECT_API_AUTH_STRING"]
    assert len(secret.partition(":")[2]) >= 32
    assert mode(server.home) == 0o700
    assert mode(server.home / "api-login") == 0o600
    assert mode(Path(server.environment["PREFECT_HOME"]) / "prefect.db") == 0o600
    assert mode(Path(server.environment["PREFECT_HOME"]) / "profiles.toml") == 0o600
    seen = [log.read_text() for log in server.home.glob("*.log")]
    for process in server.processes():
        with_children = [process, *process.children(recursive=True)]
        seen += [" ".join(each.cmdline()) for each in with_children if psutil.pid_exists(each.pid)]
    seen.append(up_again)
    assert not any(secret in text or secret.partition(":")[2] in text for text in seen)
    assert str(server.home / "api-login") in seen[-1], "the owner is told where it is"


def test_a_login_for_another_server_is_not_sent(server: Server, tmp_path: Path) -> None:
    """PREFECT_API_URL names a stranger while the profile holds the login of `rlt up`."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", free_port()))
        stranger.listen()
        stranger.settimeout(60)
        url = f"http://127.0.0.1:{stranger.getsockname()[1]}/api"
        asking = subprocess.Popen(
            [sys.executable, "-m", "flows.cli.app", "worker", "--pool", "cpu"],
            env=server.environment | {"PREFECT_API_URL": url}, cwd=tmp_path,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        said = b""
        try:
            connection, _ = stranger.accept()
            said = connection.recv(65536)
        finally:
            asking.kill()
            asking.wait()
    assert b"GET /api/health" in said
    assert b"authorization" not in said.lower()


# ---------------------------------------------------------------- private folders
def test_the_home_is_private_whatever_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLT_HOME", "")
    assert home() == Path("~/.rlt").expanduser(), "never the working directory"
    monkeypatch.setenv("RLT_HOME", str(tmp_path / "link"))
    real = tmp_path / "real"
    real.mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(real)
    assert private_folder(home()) == real
    assert mode(real) == 0o700
    old = os.umask(0)
    try:
        assert mode(private_folder(tmp_path / "new")) == 0o700
    finally:
        os.umask(old)
    (tmp_path / "planted").symlink_to(real)
    with pytest.raises(UserError, match="not a folder of this user"):
        private_folder(tmp_path / "planted")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not a folder of this user"):
        private_folder(tmp_path / "file")
    if os.getuid() == 0:
        other = tmp_path / "other"
        other.mkdir()
        os.chown(other, 65534, 65534)
        with pytest.raises(UserError, match="not a folder of this user"):
            private_folder(other)


# ---------------------------------------------------------------- the S3 server
def test_every_port_of_the_s3_server_refuses_who_has_no_key(s3_access: S3Access) -> None:
    """With its keys all other tests use it."""
    [process] = [
        each
        for each in psutil.Process().children()
        if each.is_running()
        and any(s3_access.endpoint.rpartition(":")[2] in word for word in each.cmdline())
    ]
    ports = {one.laddr.port for one in process.net_connections() if one.status == "LISTEN"}
    assert len(ports) == 8
    paths = (
        "dir/assign", "dir/lookup?volumeId=1&fileId=1,01637037d6", "vol/grow?count=1", "submit",
        "rlt-tests/x", "1,01637037d6", "col/delete?collection=rlt-tests", "buckets/rlt-tests/x",
    )  # fmt: skip
    grpc = 0
    for port in ports:
        try:
            httpx.get(f"http://127.0.0.1:{port}/", timeout=10)
        except httpx.HTTPError:
            grpc += 1
            assert refuses_strangers(port), f"gRPC of {port} asks for no certificate"
            continue
        for method in ("GET", "PUT", "POST", "DELETE"):
            for path in paths:
                answer = httpx.request(method, f"http://127.0.0.1:{port}/{path}", timeout=10)
                assert answer.status_code in (400, 401, 403, 404, 405), (port, method, path)
    assert grpc == 4


def refuses_strangers(port: int) -> bool:
    """Whether TLS ends for a client without a certificate."""
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    anybody.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        try:
            with anybody.wrap_socket(plain) as client:
                client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
                return client.recv(100) == b""
        except (ssl.SSLError, ConnectionError):
            return True
