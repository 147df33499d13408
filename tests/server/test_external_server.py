"""A Prefect server elsewhere: https, behind a path, with a login and a certificate of its own."""

import asyncio
import datetime
import ipaddress
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_URL,
    temporary_settings,
)
from prefect.states import Pending

from flows.server.local import is_healthy
from flows.server.processes import Processes, free_port
from tests.server.conftest import RLT, Server, act_sooner, new_server
from tests.server.test_faults import wait_for

pytestmark = pytest.mark.slow

LOGIN = "team:a long password"
PATH = "/prefect/api"


@dataclass
class External(Server):
    """A server that `rlt up` did not start."""

    certificate: Path

    @property
    def api(self) -> str:
        return f"https://127.0.0.1:{self.port}{PATH}"

    @property
    def login(self) -> dict[str, str]:
        certificate = str(self.certificate)
        return {
            "PREFECT_API_URL": self.api, "PREFECT_API_AUTH_STRING": LOGIN,
            "PREFECT_API_SSL_CERT_FILE": certificate, "SSL_CERT_FILE": certificate,
        }  # fmt: skip

    def settings(self):  # type: ignore[no-untyped-def]
        return temporary_settings(
            {
                PREFECT_API_URL: self.api,
                PREFECT_API_AUTH_STRING: LOGIN,
                PREFECT_API_SSL_CERT_FILE: str(self.certificate),
            }
        )


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    files[1].write_bytes(secret)
    return files


def end_tls(port: int, behind: int, certificate: Path, key: Path) -> None:
    """A proxy that takes TLS on one port and passes plain bytes on to another, for ever."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", behind)
        await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)
        await server.serve_forever()

    threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()


@pytest.fixture(scope="module")
def external(tmp_path_factory: pytest.TempPathFactory) -> Iterator[External]:
    folder = tmp_path_factory.mktemp("external")
    made = new_server(folder)
    certificate, key = make_certificate(folder)
    behind = free_port()
    server = External(made.home, made.store, made.port, made.environment, certificate)
    end_tls(server.port, behind, certificate, key)
    processes = Processes(server.home)
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(behind)]
    settings = {"PREFECT_SERVER_API_AUTH_STRING": LOGIN, "PREFECT_SERVER_API_BASE_PATH": PATH}
    processes.start("server", command, server.environment | settings)
    processes.wait("server", lambda: is_healthy(f"http://127.0.0.1:{behind}{PATH}"))
    server.environment.update(server.login)
    try:
        done = server.rlt("setup-server")
        assert done.returncode == 0, done.stdout + done.stderr
        yield server
    finally:
        processes.stop(["server"], 5)
        processes.stop_others(0)


def test_pools_workers_and_runs(external: External) -> None:
    worker = subprocess.Popen(
        [*RLT, "worker", "--pool", "cpu"], cwd=external.home, stdin=subprocess.DEVNULL,
        env=external.environment | {"RLT_STORE": str(external.store)},
    )  # fmt: skip
    try:
        run = external.finish(external.start("dataset-prep", profile="smoke"), 300)
        assert run.state and run.state.is_completed(), run.state
        assert external.log_of(run.id), "logs arrive, too"
    finally:
        worker.terminate()
        worker.wait(60)
    assert [manifest.stage for manifest in external.open_store().manifests()] == ["dataset-prep"]


def test_a_run_whose_worker_died_before_its_start_is_crashed(external: External) -> None:
    with external.client() as client:
        act_sooner(client, "Crash unstarted flow runs", 27)
    run = external.start("teacher-sft", profile="smoke")
    with external.client() as client:
        client.set_flow_run_state(run, Pending())  # as a worker takes it
    assert not external.run(run).state.is_final()  # type: ignore[union-attr]
    ended = external.finish(run, 120)
    assert ended.state and ended.state.is_crashed()
    assert "not started" in str(ended.state.message)


def test_two_workers_never_take_one_run(external: External) -> None:
    """Each of limit 1, both of one pool, and more runs than they can take at once."""
    workers = [
        subprocess.Popen(
            [*RLT, "worker", "--pool", "cpu", "--limit", "1", "--name", name],
            cwd=external.home, stdin=subprocess.DEVNULL,
            env=external.environment
            | {"RLT_STORE": str(external.store), "PREFECT_WORKER_QUERY_SECONDS": "1"},
        )
        for name in ("a", "b")
    ]  # fmt: skip
    try:
        runs = [external.start("dataset-prep", profile="smoke") for _ in range(6)]
        most = 0

        def all_ended() -> bool:
            nonlocal most
            states = [external.run(run).state for run in runs]
            most = max(most, sum(state is not None and state.is_running() for state in states))
            return all(state is not None and state.is_final() for state in states)

        wait_for(all_ended, 300)
        assert most <= 2
        for id_ in runs:
            run = external.run(id_)
            assert run.state and run.state.is_completed() and run.run_count == 1
            with external.client() as client:
                names = [state.name for state in client.read_flow_run_states(id_)]
            assert names.count("Pending") == 1 and names.count("Running") == 1, names
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(60)
