"""What a server costs: `rlt run` against `rlt/full-pipeline` on `rlt up`, the same graph.

    python -m infra.benchmarks.server_overhead [profile]

Both start with an empty store. The server is up before the clock starts; its launcher may still be
importing, as after every `rlt up`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flows.local.s3 import free_port
from rlt_core.store import Store

PYTHON = [sys.executable, "-m"]


def _timed(command: list[str], environment: dict[str, str]) -> float:
    started = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return seconds


def measure(profile: str, folder: Path) -> tuple[float, float, int]:
    """(seconds of the direct run, seconds on the server, nodes)."""
    stores = {name: str(folder / name) for name in ("direct", "server")}
    environment = {
        **os.environ,
        "RLT_HOME": str(folder / "home"),
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    rlt = [*PYTHON, "flows.cli"]
    run = [*rlt, "run", "full-pipeline", "--profile", profile, "--store", stores["direct"]]
    direct = _timed(run, environment)
    port = str(free_port())
    try:
        _timed([*rlt, "up", "--port", port, "--store", stores["server"]], environment)
        deployed = [*PYTHON, "prefect", "deployment", "run", "rlt/full-pipeline", "--watch"]
        server = _timed([*deployed, "--param", f"profile={profile}"], environment)
    finally:
        _timed([*rlt, "down"], environment)
    keys = {
        name: {manifest.ref.key for manifest in Store(store).manifests()}
        for name, store in stores.items()
    }
    if keys["direct"] != keys["server"]:
        raise SystemExit("the two runs left different artifacts")
    return direct, server, len(keys["direct"])


def main() -> None:
    """Measure and print."""
    profile = sys.argv[1] if len(sys.argv) > 1 else "smoke"
    with tempfile.TemporaryDirectory() as folder:
        direct, server, nodes = measure(profile, Path(folder))
    print(f"{profile}, {nodes} nodes: direct {direct:.1f} s, on a server {server:.1f} s")
    print(f"ratio {server / direct:.2f}, {(server - direct) / nodes:.2f} s a node more")


if __name__ == "__main__":
    main()
