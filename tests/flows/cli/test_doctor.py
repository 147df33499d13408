"""`rlt doctor`: every fault is found, with its fix, and none hides another."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from prefect.context import refresh_global_settings_context

from flows.cli import doctor as module
from flows.cli.doctor import Finding, doctor, examine
from rlt_core.errors import UserError
from tests.s3_server import answering

CLOSED = "http://127.0.0.1:9"
Examined = Callable[..., tuple[dict[str, Finding], int]]


@pytest.fixture
def examined(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Examined:
    """Return the findings by check, and the exit status; without torch, which has its own test."""
    for name in ("PREFECT_API_URL", *module.PROXIES, *(each.lower() for each in module.PROXIES)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("RLT_HOME", str(tmp_path / "rlt"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(module, "_torch", lambda: "")

    def run(store: object = tmp_path / "store", **given: object) -> tuple[dict[str, Finding], int]:
        refresh_global_settings_context()  # Prefect has read the environment of an earlier test
        with pytest.raises(typer.Exit) as ended:
            doctor(**{"profile": "smoke", "set_": None, "as_json": True} | given, store=str(store))
        found = [Finding(**each) for each in json.loads(capsys.readouterr().out)]
        return {each.check: each for each in found}, ended.value.exit_code

    return run


def test_a_machine_without_faults(examined: Examined, tmp_path: Path) -> None:
    found, status = examined()
    assert [each for each in found.values() if each.state == "broken"] == [] and status == 0
    assert list(found) == [
        "python", "packages", "torch", "vllm", "hub", "store", "prefect", "proxies", "profile",
    ]  # fmt: skip
    assert not (tmp_path / "store").exists()  # a check leaves nothing


def test_every_fault_has_its_fix(
    examined: Examined, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "packages" / "trl-0.1.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(str(old.parent))
    monkeypatch.setenv("PREFECT_API_URL", f"{CLOSED}/api")
    monkeypatch.setenv("HTTPS_PROXY", "http://someone:a-password@127.0.0.1:9")
    found, status = examined("/proc/store", set_=["resources.disk_gb=1e-6"])
    assert status == 1
    expected = {
        "packages": ("trl 0.1, not ==1.16", "pip install -c"),
        "store": ("/proc/store cannot be written", "--store"),
        "prefect": ("no Prefect server answers", "start it"),
        "proxies": ("HTTPS_PROXY (127.0.0.1)", "correct or unset HTTPS_PROXY"),
        "profile": ("this layout cannot run", "larger disk"),
    }
    for name, (said, fix) in expected.items():
        assert found[name].state == "broken", name
        assert said in found[name].found and fix in found[name].fix, found[name]
    assert "a-password" not in str(found)


def test_a_server_that_ignores_conditions_is_found(
    examined: Examined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with answering(200, "") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        found, status = examined("s3://a-bucket/store")
    assert (status, found["store"].state) == (1, "broken")
    assert "ignores the condition If-None-Match" in found["store"].found
    assert "Use a server that honours it" in found["store"].fix


def test_a_hub_that_is_away_is_a_warning(
    examined: Examined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    found, status = examined()
    assert (status, found["hub"].state) == (0, "warning") and "HF_HUB_OFFLINE" in found["hub"].fix
    with answering(200, "") as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        assert examined()[0]["hub"].state == "ok"


def test_a_check_that_hangs_or_fails_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.3)
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def hang() -> str:
            with socket.create_connection(silent.getsockname()) as asked:
                return str(asked.recv(1))

        found = examine({"prefect": hang, "x": lambda: str(1 / 0), "y": module._python})
    assert time.monotonic() - started < 5
    assert [each.state for each in found] == ["broken", "broken", "ok"]
    assert found[0].found == "no answer in 0 s" and found[0].fix
    assert found[1].found == "ZeroDivisionError: division by zero"


def test_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13 is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match=r"libcudart.so.13 is missing; pip install"):
        module._torch()
