"""Compare `rlt run` with the same graph on a local server, each from an empty store; and a fresh
process per node with a fork of a server that has the stages' imports.

    python -m infra.benchmarks.server_overhead [PROFILE]
    python -m infra.benchmarks.server_overhead children

The server is up before the clock starts.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flows.server.processes import free_port
from rlt_core.stages import STAGES
from rlt_core.store import Store
from tasks.child_process import ChildProcesses

PYTHON = [sys.executable, "-m"]
RLT = [*PYTHON, "flows.cli.app"]


def timed(command: list[str], environment: dict[str, str]) -> float:
    """Return the seconds of a command. Raises SystemExit if it fails."""
    started = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.monotonic() - started


def children() -> None:
    """Print how long a child takes that does nothing but has a stage's imports."""
    modules = sorted(stage.module for stage in STAGES.values())
    for module in modules:
        fresh = timed([sys.executable, "-c", f"import {module}, tasks.execute"], dict(os.environ))
        print(f"{module}: a fresh process {fresh:.2f} s")
    forking = ChildProcesses(modules)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(6):
            started = time.monotonic()
            forking.execute(
                "operator:is_", 0, log=Path(folder) / "log.txt",
                on_progress=lambda *_: None, on_line=print,
            )  # fmt: skip
            what = "fork server with all imports, first child" if number == 0 else "another child"
            print(f"{what}: {time.monotonic() - started:.2f} s")


def main() -> None:
    if sys.argv[1:] == ["children"]:
        return children()
    profile = sys.argv[1] if len(sys.argv) > 1 else "smoke"
    with tempfile.TemporaryDirectory() as folder:
        stores = {name: str(Path(folder) / name) for name in ("direct", "server")}
        environment = {
            **os.environ,
            "RLT_HOME": f"{folder}/home",
            "PREFECT_HOME": f"{folder}/prefect",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        run = [*RLT, "run", "full-pipeline", "--profile", profile, "--store", stores["direct"]]
        direct = timed(run, environment)
        try:
            up = [*RLT, "up", "--port", str(free_port()), "--store", stores["server"]]
            timed(up, environment)
            deployed = [*PYTHON, "prefect", "deployment", "run", "rlt/full-pipeline", "--watch"]
            server = timed([*deployed, "--param", f"profile={profile}"], environment)
        finally:
            timed([*RLT, "down"], environment)
        one, other = ({m.ref.key for m in Store(root).manifests()} for root in stores.values())
    if one != other:
        raise SystemExit("the two runs left different artifacts")
    print(
        f"{profile}, {len(one)} nodes: direct {direct:.1f} s, on a server {server:.1f} s, ratio "
        f"{server / direct:.2f}, {(server - direct) / len(one):.2f} s more per node"
    )


if __name__ == "__main__":
    main()
