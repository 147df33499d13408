"""The command line in processes of its own, and one finished `smoke` run for all tests."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

COMMAND = [sys.executable, "-m", "flows.cli.app"]


def environment(home: Path) -> dict[str, str]:
    """Prefect keeps its state apart from the user's; what `rlt up` of the user's started is not
    seen."""
    own = {"PREFECT_HOME": str(home / "prefect"), "RLT_HOME": str(home / "rlt"), "COLUMNS": "160"}
    return os.environ | own


SEVERAL = """
import contextlib, io, json, sys
from flows.cli.app import main

found = []
for words in json.loads(sys.argv.pop()):
    sys.argv[1:] = words
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
    found.append([words, status, out.getvalue(), errors.getvalue()])
print(json.dumps(found))
"""


def in_one_process(
    commands: list[list[str]], found: Mapping[str, str]
) -> list[subprocess.CompletedProcess[str]]:
    """Run commands of `rlt` one after the other in a process with this environment: libraries
    read it as they are imported."""
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps(commands)],
        capture_output=True, text=True, env=found,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [subprocess.CompletedProcess(*each) for each in json.loads(done.stdout)]


def finished(folder: Path) -> Path:
    """The store of the run, which nobody may change; computed by the first process that asks."""
    folder.mkdir(exist_ok=True)
    store = folder / "store"
    with FileLock(folder / "lock"):
        if not (folder / "done").exists():
            _run(store, folder / "home")
            (folder / "done").touch()
    return store


def _run(store: Path, home: Path) -> None:
    """It has imports of its own; it needs no home, and meets no proxy on loopback, as in a
    container with a read-only home on a company's network."""
    nowhere = "127.0.0.1:9"
    container = {
        "HOME": "/dev/null/home", "PREFECT_HOME": "", "RLT_HOME": "/dev/null/rlt",
        "HTTP_PROXY": f"http://{nowhere}", "ALL_PROXY": f"socks5://{nowhere}",
    }  # fmt: skip
    found = {
        name: v for name, v in environment(home).items() if not name.lower().endswith("_proxy")
    }
    command = [*COMMAND, "run", "full-pipeline", "--profile", "smoke", "--store", str(store)]
    done = subprocess.run(command, capture_output=True, text=True, env=found | container)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report.md" in done.stdout
    assert "leaked" not in done.stderr, "its processes end in silence"
