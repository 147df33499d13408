"""Killed in any stage, the next run completes with the same keys and repeats nothing finished."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlt_core.experiments import targets
from rlt_core.graph import upstream
from rlt_core.overrides import load_config
from rlt_core.stages import STAGES
from rlt_core.store import Manifest, Store
from tests.flows.conftest import COMMAND, Served, environment

STARTED = re.compile(r"^ +(\S+) …$")
FINISHED = re.compile(r"^ *\d+/\d+  (\S+) ")
INTO_THE_WORK_S = 0.3


def stage_of(node: str) -> str:
    return re.split(r"[\[@]", node)[0]


def start(store: Path, found: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "run", *arguments, "--profile", "smoke", "--store", str(store)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=found,
    )  # fmt: skip


def running_stages(process: subprocess.Popen[str]) -> Iterator[set[str]]:
    """After each line: the stages that run right now."""
    running: set[str] = set()
    assert process.stdout
    for line in process.stdout:
        if match := STARTED.match(line):
            running.add(match[1])
        elif match := FINISHED.match(line):
            running.discard(match[1])
        yield {stage_of(node) for node in running}


def committed(store: Path) -> dict[str, Manifest]:
    return {manifest.ref.key: manifest for manifest in Store(str(store)).manifests()}


def contents(manifests: dict[str, Manifest]) -> dict[tuple[str, str], str]:
    """Hashes of all models and tables of training, by key and path."""
    return {
        (key, file.path): file.sha256
        for key, manifest in manifests.items()
        for file in manifest.files
        if file.path.startswith(("model/", "traces", "scores", "eval_samples", "questions"))
    }


@pytest.mark.slow
def test_sigkill_once_in_every_stage(smoke_store: Path, home: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    to_kill = set(STAGES) - {"trace-import", "trace-refinement", "score-import"}
    before: dict[str, Manifest] = {}
    kills = 0
    while True:
        process = start(store, environment(home))
        for stages in running_stages(process):
            if stages & to_kill:
                time.sleep(INTO_THE_WORK_S)
                process.send_signal(signal.SIGKILL)
                to_kill -= stages
                kills += 1
                break
        process.communicate()
        now = committed(store)
        for key, manifest in before.items():
            assert now[key].attempt == manifest.attempt, f"{manifest.label} was done again"
        before = now
        if process.returncode != -signal.SIGKILL:
            break
    assert process.returncode == 0
    # A child that outlives its killed command by a moment may commit the report, the last node.
    assert to_kill <= {"report"} and kills >= 8
    keys = {node.key for node in upstream(targets("full-pipeline", load_config("smoke")))}
    assert set(before) == keys
    # Taken up where it was killed, the work leaves the same bytes as a run that never was.
    assert contents(before) == contents(committed(smoke_store))


def test_ctrl_c_once_stops_and_the_same_command_goes_on(
    home: Path, served: Served, store: Path
) -> None:
    """Also where the work is a child of a shared fork server, which stays."""
    there = committed(store)
    command = ("teacher-grpo", "--set", "teacher_sft.learning_rate=2e-3")
    process = start(store, environment(home), *command)
    interrupt(process, "teacher-sft")
    assert Store(str(store)).working() == {}
    assert committed(store) == there
    again = start(store, served.environment(), *command)
    interrupt(again, "teacher-grpo", lambda: served.at_work)
    assert not served.at_work
    new = [manifest for key, manifest in committed(store).items() if key not in there]
    assert [manifest.stage for manifest in new] == ["teacher-sft"]


def interrupt(
    process: subprocess.Popen[str], stage: str, at_work: Callable[[], bool] = lambda: True
) -> None:
    """Ctrl-C while the stage runs."""
    for stages in running_stages(process):
        if stage in stages:
            deadline = time.monotonic() + 60
            while not at_work():
                assert time.monotonic() < deadline
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            break
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 130, output
    assert "the same command continues" in output and "Traceback" not in output
