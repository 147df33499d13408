"""A store on S3 behind a server; its keys are in a block on the server and nowhere else."""

import time
import uuid
from pathlib import Path

import pytest
import s3_server
from prefect_aws import AwsCredentials
from prefect_aws.client_parameters import AwsClientParameters
from pydantic import SecretStr

from flows.server.seaweedfs import S3Access
from rlt_core.store import Store
from tests.server.conftest import new_server

pytestmark = pytest.mark.slow


def test_the_block_opens_the_store_and_its_secret_goes_nowhere(
    s3_access: S3Access, tmp_path: Path
) -> None:
    place = f"s3://{s3_server.BUCKET}/{uuid.uuid4().hex}"
    server = new_server(tmp_path, RLT_STORE_BLOCK="aws-credentials/rlt")
    try:
        server.up("--store", place)
        without = server.finish(server.start("dataset-prep", profile="smoke"))
        assert without.state and without.state.is_failed()
        assert "RLT_STORE_BLOCK" in str(without.state.message)
        with server.settings():
            AwsCredentials(
                aws_access_key_id=s3_access.access_key,
                aws_secret_access_key=SecretStr(s3_access.secret_key),
                region_name="us-east-1",
                aws_client_parameters=AwsClientParameters(endpoint_url=s3_access.endpoint),
            ).save("rlt")
        run = server.finish(server.start("dataset-prep", profile="smoke"))
        assert run.state and run.state.name == "Completed", server.log_of(run.id)
        again = server.finish(server.start("dataset-prep", profile="smoke"))
        assert again.state and again.state.name == "Cached"
        store = Store(place)
        assert [manifest.stage for manifest in store.manifests()] == ["dataset-prep"]
        written = [store.files.read(path) or b"" for path in store.files.walk("")]
        seen = [log.read_bytes() for log in server.home.glob("*.log")]
        seen += [server.log_of(run.id).encode(), str(run.model_dump()).encode()]
        assert not any(s3_access.secret_key.encode() in text for text in [*written, *seen])
    finally:
        server.rlt("down")


def test_up_with_s3_is_a_store_that_commands_find_and_down_leaves_no_process(
    tmp_path: Path,
) -> None:
    server = new_server(tmp_path)
    try:
        output = server.rlt("up", "--s3", "--port", str(server.port))
        assert output.returncode == 0, output.stderr + server.logs()
        assert "s3://rlt/store" in output.stdout
        run = server.finish(server.start("dataset-prep", profile="smoke"))
        assert run.state and run.state.name == "Completed", server.log_of(run.id)
        asked = server.rlt("sql", "--format", "csv", "select stage from artifacts")
        assert asked.stdout.split() == ["stage", "dataset-prep"], asked.stderr
        again = server.rlt("up", "--s3", "--port", str(server.port))
        assert again.returncode == 0
        assert "started" not in again.stdout
        idle = len(server.processes())
        busy = server.start("base-model", profile="smoke", set=["base_model.steps=5000"])
        deadline = time.monotonic() + 60
        while not (server.run(busy).state.is_running() and len(server.processes()) > idle + 1):  # type: ignore[union-attr]
            assert time.monotonic() < deadline, server.logs()
            time.sleep(0.5)
    finally:
        done = server.rlt("down")
    assert done.returncode == 0, done.stderr
    assert server.processes() == []
    assert "nothing is up" in server.rlt("down").stdout
