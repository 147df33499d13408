"""`rlt fetch` against a hub on loopback: downloads, pins, and then everything works offline."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.cli.fetch import _wanted
from rlt_core.evaluation.benchmarks import BENCHMARKS
from rlt_core.overrides import load_config
from tests.flows.conftest import Rlt
from tests.http_servers import Handler, serving
from tests.hub_cache import ROWS, write_hub
from tests.smoke_run import in_one_process

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/tiny-model"


class _Hub(Handler):
    repo, kind = REPO, "models"
    files: dict[str, bytes]
    downloads: list[str]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/{self.kind}/{self.repo}/tree/"):
            tree = [
                {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for n, d in self.files.items()
            ]
            return self._send(json.dumps(tree).encode())
        if path.startswith(f"/api/{self.kind}/{self.repo}"):
            siblings = [{"rfilename": n, "size": len(d)} for n, d in self.files.items()]
            answer = {"id": self.repo, "sha": COMMIT, "siblings": siblings}
            return self._send(json.dumps(answer).encode())
        name = path.rpartition("/")[2]
        place = self.repo if self.kind == "models" else f"{self.kind}/{self.repo}"
        if path.startswith(f"/{place}/resolve/") and name in self.files:
            if self.command == "GET":
                self.downloads.append(name)
            return self._send(self.files[name])
        self.reply(404)

    do_HEAD = do_GET

    def _send(self, data: bytes) -> None:
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        self.reply(200, data, ETag=etag, X_Repo_Commit=COMMIT)


@pytest.fixture
def hub() -> Iterator[str]:
    _Hub.files = {
        "config.json": b'{"model_type": "llama"}',
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"a pickle",
    }
    _Hub.downloads = []
    with serving(_Hub) as url:
        yield url


def online(endpoint: str, home: Path) -> dict[str, str]:
    """The environment of a process that reaches the hub."""
    return os.environ | {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip


def test_what_is_fetched_is_pinned_and_no_pickle_comes_along(hub: str, tmp_path: Path) -> None:
    source = ["--profile", "tiny", "--set", f"base_model=hub:{REPO}"]
    plan = ["plan", *source, "--store", str(tmp_path / "store"), "--json"]
    commands = [plan, ["fetch", *source], plan, ["fetch", *source]]
    before, done, after, again = in_one_process(commands, online(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"{REPO}@{COMMIT}" in done.stdout
    unpinned, pinned = (
        next(row["key"] for row in json.loads(each.stdout) if row["stage"] == "base-model")
        for each in (before, after)
    )
    assert pinned != unpinned
    assert "0.00 GiB" in again.stdout
    assert sorted(_Hub.downloads) == ["config.json", "model.safetensors"]


def test_models_that_are_compared_are_fetched_too() -> None:
    bench = {"teachers": {"a": "hub:some/teacher"}, "students": {"b": "hub:some/student"}}
    config = load_config("teach", [f"teacher_bench={json.dumps(bench)}"])
    repos = {each.repo for each in _wanted(config, "bench-teachers")}
    assert {"some/teacher", "some/student"} <= repos


def test_what_cannot_be_fetched_is_one_clear_error_before_anything_is_downloaded(
    hub: str, tmp_path: Path
) -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 1 << 60

    _Hub.files["model.safetensors"] = Huge(b"weights")
    said = {REPO: "GiB free", "nobody/nothing": "nobody/nothing"}
    commands = [["fetch", "--set", f"base_model=hub:{repo}"] for repo in said]
    for done, message in zip(
        in_one_process(commands, online(hub, tmp_path)), said.values(), strict=True
    ):
        assert done.returncode == 2
        assert message in done.stderr and done.stderr.count("\n") == 1
    assert _Hub.downloads == []


def test_a_profile_that_needs_no_hub(rlt_inside: Rlt) -> None:
    done = rlt_inside("fetch", "--profile", "tiny")
    assert done.returncode == 0 and "nothing from the hub" in done.stdout


def test_a_machine_that_fetched_nothing_downloads_the_benchmark_of_its_node(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker evaluates what was pinned where the pipeline was planned."""
    write_hub(tmp_path / "there", {"math_500": ROWS["math_500"]})
    files = next((tmp_path / "there").glob("*/snapshots/*")).iterdir()
    monkeypatch.setattr(_Hub, "repo", BENCHMARKS["math_500"].repo)
    monkeypatch.setattr(_Hub, "kind", "datasets")
    _Hub.files = {file.name: file.read_bytes() for file in files}
    ask = (
        "from rlt_core.evaluation.benchmarks import benchmark_task\n"
        f"print(benchmark_task('math_500', revision={COMMIT!r}).questions[0]['answer'])"
    )

    def run(home: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", ask], capture_output=True, text=True,
            env=online(hub, tmp_path / home),
        )  # fmt: skip

    done = run("here")
    assert done.stdout.split() == ["\\frac{1}{2}"], done.stderr
    assert "train.jsonl" in _Hub.downloads
    monkeypatch.setattr(_Hub, "repo", "another/one")
    done = run("elsewhere")
    assert "UserError: task math_500: data set" in done.stderr


def test_a_run_that_names_the_hub_without_a_commit_does_not_begin(
    rlt_inside: Rlt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = [
        "full-pipeline", "--profile", "smoke", "--store", str(tmp_path / "store"),
        "--set", "base_model=hub:org/name", "--set", 'evaluation.tasks=["test","aime24"]',
    ]  # fmt: skip
    assert rlt_inside("plan", *asked).returncode == 0
    done = rlt_inside("run", *asked)
    assert done.returncode == 2
    assert done.stderr.startswith("rlt: base-model, dataset-prep, evaluation[base] and 3 more")
    assert "rlt fetch full-pipeline" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store" / "artifacts").exists()
