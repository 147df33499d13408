"""Stopped in any stage, the next run goes on. `make faults` kills it (infra/faults/runs.py)."""

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rlt_core.store import Manifest, Store
from tests.flows.conftest import COMMAND, Served, environment

STARTED = re.compile(r"^ +(\S+) …$")
FINISHED = re.compile(r"^ *\d+/\d+  (\S+) ")


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


def test_ctrl_c_once_stops_and_the_same_command_goes_on(
    home: Path, served: Served, store: Path
) -> None:
    """Also where the work is a child of a shared fork server, which stays. Twice kills."""
    there = committed(store)
    # Long enough to be found at work.
    changes = ("--set", "teacher_sft.learning_rate=2e-3", "--set", "teacher_grpo.steps=300")
    command = ("teacher-grpo", *changes)
    process = start(store, environment(home), *command)
    interrupt(process, "teacher-sft")
    assert Store(str(store)).working() == {}
    assert committed(store) == there
    again = start(store, served.environment(), *command)
    watch = [*COMMAND, "status", "--watch", "--store", str(store)]
    watching: list[subprocess.Popen[str]] = []

    def at_work() -> bool:
        if not watching:
            watching.append(subprocess.Popen(watch, stdout=subprocess.PIPE, text=True))
            assert watching[0].stdout and "smoke/teacher-grpo" in watching[0].stdout.readline()
        return served.at_work

    assert "killed" in interrupt(again, "teacher-grpo", at_work, times=2)
    assert not served.at_work
    watched, _ = watching[0].communicate(timeout=30)
    assert watching[0].returncode == 130, "it ends as the run ends"
    assert watched.endswith("smoke/teacher-grpo was stopped; the same command continues it\n")
    new = [manifest for key, manifest in committed(store).items() if key not in there]
    assert [manifest.stage for manifest in new] == ["teacher-sft"]


def interrupt(
    process: subprocess.Popen[str],
    stage: str,
    at_work: Callable[[], bool] = lambda: True,
    times: int = 1,
) -> str:
    """Ctrl-C while the stage runs; returns what is printed then."""
    for stages in running_stages(process):
        if stage in stages:
            deadline = time.monotonic() + 60
            while not at_work():
                assert time.monotonic() < deadline
                time.sleep(0.1)
            for _ in range(times):
                process.send_signal(signal.SIGINT)
                time.sleep(0.1)
            break
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 130, output
    assert "the same command continues" in output and "Traceback" not in output
    return output
