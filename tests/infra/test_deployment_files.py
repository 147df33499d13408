"""Files of infra/ for machines that no test has: each is checked against its schema or by its
linter, and what they name is there."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import botocore.session
import kubernetes_validate
import pytest
import s3_server
import yaml

from flows.server.seaweedfs import S3Access
from tasks.child_process import GRACE_S

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
BIN = Path(sys.executable).parent
KUBERNETES = "1.37"
WORKER_STOP_S = 15
"""Seconds that a worker took to end once nothing ran, measured, rounded up."""


def check(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_citation_is_valid() -> None:
    schema = "vendor.citation-file-format"
    check(BIN / "check-jsonschema", "--builtin-schema", schema, "CITATION.cff")


# ---------------------------------------------------------------- images and compose
@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_images_are_pinned_checked_and_nobodys_root(name: str) -> None:
    file = INFRA / "images" / f"{name}.Dockerfile"
    check(BIN / "hadolint", file)
    lines = file.read_text().splitlines()
    bases = [line for line in lines if line.startswith("FROM")]
    assert bases
    for base in bases:
        assert re.fullmatch(r"FROM python:3\.11\.\d+-slim-bookworm( AS \w+)?", base)
    users = [line for line in lines if line.startswith("USER")]
    assert users == ["USER 10001"]
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    constraints = re.findall(r"-c /?(\S+)", file.read_text())
    assert constraints and all((ROOT / one).is_file() for one in constraints)
    installs = re.findall(r"pip install .*", file.read_text())
    assert installs
    assert all(any(one in line for one in ("-c ", "--index-url", "--no-deps")) for line in installs)


def test_images_without_a_compiler_build_apart_what_has_no_wheel() -> None:
    """PyPI takes no wheel that says `linux`: such a one was built on the machine that has it."""
    built = set()
    for distribution in importlib.metadata.distributions():
        if "-linux_" in (distribution.read_text("WHEEL") or ""):
            built.add(distribution.name)
    [line] = re.findall(r"pip wheel .*", (INFRA / "images" / "cpu.Dockerfile").read_text())
    assert built <= set(line.split())
    assert " gcc " in (INFRA / "images" / "cuda.Dockerfile").read_text()


def test_with_vllm_the_cuda_build_of_torch_is_pinned() -> None:
    """Resolved where torch is built for the CPU, Triton and CUDA's libraries are the newest of all,
    and torch 2.13.0 from PyPI, which names its own, cannot be installed."""
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints" / "vllm.txt").read_text().split()
    )
    assert pinned["torch"] == "2.13.0" and pinned["triton"] == "3.7.1"
    assert pinned["nvidia-nccl-cu13"] == "2.29.7" and pinned["nvidia-cudnn-cu13"] == "9.20.0.48"
    assert pinned["cuda-toolkit"].startswith("13.0.3")
    toolkit = {name for name in pinned if name.startswith(("nvidia-cuda-", "nvidia-nvvm"))}
    assert {pinned[name].rpartition(".")[0] for name in toolkit} == {"13.0"}


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((INFRA / "compose.yaml").read_text()))


def test_compose_is_valid_and_every_service_is_watched() -> None:
    check(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "infra/compose.yaml")
    services = compose()["services"]
    assert services
    for name, service in services.items():
        image = service["image"]
        own = image.startswith("rlt-pipeline:")
        if own:
            build = service["build"]
            assert (INFRA / build["context"] / build["dockerfile"]).resolve().is_file()
        assert re.search(r":[\w.-]+$", image) and not image.endswith(":latest")
        assert own or "healthcheck" in service, f"{name}: its image has no health check of ours"
        for needed in service.get("depends_on", {}):
            assert needed in services


def test_what_workers_of_containers_run_has_its_time_to_checkpoint() -> None:
    workers = [name for name in compose()["services"] if name.startswith("worker-")]
    kinds = {document["kind"] for document in documents("process-workers.yaml")}
    assert workers and kinds & {"Job", "Deployment"}
    for name, service in compose()["services"].items():
        if name.startswith("worker-"):
            assert service["command"].startswith("rlt worker ")
            assert int(service["stop_grace_period"].removesuffix("s")) > GRACE_S + WORKER_STOP_S
    for document in documents("process-workers.yaml"):
        if document["kind"] in ("Job", "Deployment"):
            pod = document["spec"]["template"]["spec"]
            assert pod["containers"][0]["args"][:2] == ["rlt", "worker"]
            assert pod["terminationGracePeriodSeconds"] > GRACE_S + WORKER_STOP_S
    for name in ("cpu", "cuda"):
        assert 'CMD ["rlt", "worker", ' in (INFRA / "images" / f"{name}.Dockerfile").read_text()


def test_postgres_is_healthy_once_it_answers_others() -> None:
    """While its image makes the database, a server answers on the socket alone, and ends."""
    assert "--host" in compose()["services"]["postgres"]["healthcheck"]["test"]


def test_the_api_and_the_store_of_compose_ask_for_a_login() -> None:
    services = compose()["services"]
    login = "rlt:${RLT_PREFECT_PASSWORD:?set it in infra/.env}"
    server = services["prefect"]["environment"]
    assert server["PREFECT_SERVER_API_AUTH_STRING"] == login
    assert "*" not in server["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"]
    for name, service in services.items():
        if name.startswith("worker-") or name == "setup":
            assert service["environment"]["PREFECT_API_AUTH_STRING"] == login
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:") and name == "prefect"
    assert services["s3"]["command"].startswith("python -m flows.server.seaweedfs ")


def test_the_s3_server_of_compose_shows_the_network_signed_ports_alone(tmp_path: Path) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "0123456789abcdef", "AWS_SECRET_ACCESS_KEY": "secret" * 4}
    command = [sys.executable, "-c", SHOW, "flows.server.seaweedfs", str(tmp_path / "s3")]
    line = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | keys, cwd=ROOT
    ).stdout.split("\0")
    assert "-s3.ip.bind=0.0.0.0" in line and "-ip.bind=127.0.0.1" in line
    assert "-disableHttp" in line and f"-config_dir={tmp_path / 's3'}" in line
    assert not any(secret in word for word in line for secret in keys.values())
    for file in (tmp_path / "s3").glob("*.*"):
        assert file.stat().st_mode & 0o077 == 0, file


SHOW = """
import os, runpy, sys
os.execv = lambda path, line: print("\\0".join(line))
sys.argv[1:] = sys.argv[2:] if (module := sys.argv[1]) else []
runpy.run_module(module, run_name="__main__")
"""
"""What a module would execute."""


def test_every_variable_of_compose_is_in_the_example() -> None:
    asked = set(re.findall(r"\$\{(\w+)", (INFRA / "compose.yaml").read_text()))
    given = set(re.findall(r"^(\w+)=", (INFRA / "example.env").read_text(), flags=re.M))
    assert asked == given


# ---------------------------------------------------------------- Kubernetes
def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((INFRA / "kubernetes" / name).read_text()))


@pytest.mark.parametrize("name", ["rlt.yaml", "job-workers.yaml", "process-workers.yaml"])
def test_kubernetes_accepts_what_is_applied(name: str) -> None:
    for document in documents(name):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_workers_that_share_nodes_are_there_together_and_read_what_the_others_do() -> None:
    job, _, cpu = documents("process-workers.yaml")
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] > 1
    named = {document["metadata"]["name"] for document in documents("rlt.yaml")
             if document["kind"] == "ConfigMap"}  # fmt: skip
    for workers in (job, cpu):
        [container] = workers["spec"]["template"]["spec"]["containers"]
        read = {source["configMapRef"]["name"] for source in container["envFrom"]
                if "configMapRef" in source}  # fmt: skip
        assert read == named


def test_workers_that_start_jobs_make_no_pool_of_another_template() -> None:
    workers = [each for each in documents("job-workers.yaml") if each["kind"] == "Deployment"]
    assert len(workers) == 2
    for each in workers:
        [container] = each["spec"]["template"]["spec"]["containers"]
        assert "--no-create-pool-if-not-found" in container["args"]


# ---------------------------------------------------------------- Slurm, S3
def test_the_slurm_script_is_sound_and_says_what_it_needs() -> None:
    file = INFRA / "slurm" / "worker.sbatch"
    check(BIN / "shellcheck", file)
    empty = subprocess.run(["bash", file], capture_output=True, text=True, env={"PATH": "/bin"})
    assert empty.returncode != 0
    assert "PREFECT_API_URL: the address of the Prefect server" in empty.stderr


def test_an_s3_server_takes_the_lifecycle_rules(s3_access: S3Access) -> None:
    rules = json.loads((INFRA / "s3" / "lifecycle.json").read_text())
    client = botocore.session.get_session().create_client(
        "s3", endpoint_url=s3_access.endpoint, region_name="us-east-1",
        aws_access_key_id=s3_access.access_key, aws_secret_access_key=s3_access.secret_key,
    )  # fmt: skip
    bucket = f"{s3_server.BUCKET}-lifecycle"
    client.create_bucket(Bucket=bucket)
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules)
    kept = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert {rule["Status"] for rule in kept} == {"Enabled"}
    assert any("AbortIncompleteMultipartUpload" in rule for rule in kept)
