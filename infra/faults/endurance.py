"""Run `rlt/full-pipeline` under `smoke` on a server of `rlt up`, round after round, with random
SIGKILLs of workers, fork servers, flow runs and computations; measure what a leak would change.

    python -m infra.faults.endurance --minutes 120 --csv endurance.csv

Each round must complete, with the bytes of the first round of its seed. Then its artifacts are
removed, so that the next round of this seed computes all again. SIGTERM ends it early, with the
table of what was measured. Exit status 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
import pandas as pd

from flows.server.processes import Processes, free_port
from infra.faults.runs import RLT, Contents, contents, kind_of, require_same
from infra.faults.tally import Lost
from rlt_core.experiments import targets
from rlt_core.graph import upstream
from rlt_core.overrides import load_config
from rlt_core.store import Store

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import State

SEEDS = 3
UP_ATTEMPTS = 10
ROUND_S = 3600.0
"""The longest round."""
KILLED = ("worker", "fork server", "flow run", "computation")
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS": "300",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": "3601",
    "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "PT20M",
}
"""By default Prefect keeps flow runs for ever and events for 7 days. The shortest times that it
allows show within two hours whether the database stops growing."""


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


class Bench:
    """A server of `rlt up`; all its files are below one folder."""

    def __init__(self, folder: Path, choice: random.Random, first: Contents) -> None:
        self.folder, self.choice = folder, choice
        self.store = Store(str(folder / "store"))
        (folder / "tmp").mkdir()
        homes = {"RLT_HOME": "home", "PREFECT_HOME": "prefect", "TMPDIR": "tmp"}
        os.environ.update(SETTINGS | {name: str(folder / part) for name, part in homes.items()})
        self.processes = Processes(folder / "home")
        self._up = ("up", "--port", str(free_port()), "--store", str(self.store))
        self._first = first
        """The contents of the first round of each seed."""

    def rlt(self, *arguments: str) -> None:
        done = subprocess.run([*RLT, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, f"rlt {' '.join(arguments)}:\n{done.stdout}{done.stderr}"

    def up(self) -> None:
        """Start what is not running; on a busy machine that may take several attempts."""
        for _ in range(UP_ATTEMPTS):
            with suppress(AssertionError):
                return self.rlt(*self._up)
        self.rlt(*self._up)

    @staticmethod
    def client() -> SyncPrefectClient:
        """Return a client of the server that the profile of `rlt up` names."""
        from prefect.client.orchestration import get_client  # reads the profile when imported

        return get_client(sync_client=True)

    @staticmethod
    def state(client: SyncPrefectClient, run: UUID) -> State[Any] | None:
        """Return the state of a run; None if the server is too busy to answer."""
        with suppress(httpx.HTTPError):
            return client.read_flow_run(run).state
        return None

    def kill(self) -> None:
        """Kill a process at random; start a killed worker again."""
        kinds = {process: kind_of(process) for process in self.processes.marked()}
        if victims := [process for process, kind in kinds.items() if kind in KILLED]:
            victim = self.choice.choice(victims)
            victim.kill()
            say(f"  killed: {kinds[victim]}")
            if kinds[victim] == "worker":
                self.up()

    # ------------------------------------------------------------ a round
    def compute(self, seed: int, kills: int, mean_s: float) -> dict[str, float]:
        """Compute all nodes of a seed, with kills at exponentially distributed intervals."""
        from prefect.states import Scheduled

        overrides = [f"seeds=[{seed}]"]
        keys = {
            node.key for node in upstream(targets("full-pipeline", load_config("smoke", overrides)))
        }
        began = time.monotonic()
        next_kill, killed, retries = began + self.choice.expovariate(1 / mean_s), 0, 0
        with self.client() as client:
            deployment = client.read_deployment_by_name("rlt/full-pipeline").id
            parameters = {"profile": "smoke", "set": overrides}
            run = client.create_flow_run_from_deployment(deployment, parameters=parameters).id
            while not (state := self.state(client, run)) or not state.is_completed():
                assert time.monotonic() < began + ROUND_S, f"still {state}; {self.open_runs()}"
                if state and state.is_final():
                    say(f"  retried after {state.name}: {(state.message or '')[:160]}")
                    with suppress(httpx.HTTPError):
                        client.set_flow_run_state(run, Scheduled(name="AwaitingRetry"), force=True)
                        retries += 1
                elif killed < kills and time.monotonic() > next_kill:
                    self.kill()
                    killed += 1
                    next_kill = time.monotonic() + self.choice.expovariate(1 / mean_s)
                time.sleep(2)
        self.rlt("artifacts", "verify", "--store", str(self.store))
        found = contents(str(self.store))
        assert keys <= {one.ref.key for one in self.store.manifests()}, "a node is not there"
        self._first = found | self._first
        require_same(found, {path: self._first[path] for path in found})
        return {"seconds": time.monotonic() - began, "kills": killed, "retries": retries}

    def clear(self) -> None:
        """Remove all artifacts, and what killed attempts left."""
        for manifest in self.store.manifests():
            self.store.remove(manifest.ref)
        self.rlt("artifacts", "gc", "--store", str(self.store))

    # ------------------------------------------------------------ samples
    def open_runs(self) -> list[str]:
        """Return the flow runs that occupy a slot of their pool and queue."""
        from prefect.client.schemas.filters import FlowRunFilter

        types = {"any_": ["PENDING", "RUNNING", "CANCELLING", "PAUSED"]}
        chosen = FlowRunFilter.model_validate({"state": {"type": types}})
        with self.client() as client:
            found = client.read_flow_runs(flow_run_filter=chosen)
        return [f"{run.name} {run.state_name}" for run in found]

    def sample(self) -> dict[str, float]:
        """Measure between two rounds, once the processes of the last run have ended."""
        deadline = time.monotonic() + 60
        while True:
            processes = self.processes.marked()
            kinds = [kind_of(process) for process in processes]
            if not {"flow run", "computation"} & {*kinds} or time.monotonic() > deadline:
                break
            time.sleep(1)
        rss: Counter[str] = Counter()
        for process, kind in zip(processes, kinds, strict=True):
            rss[kind] += process.memory_info().rss
        database = self.folder.glob("prefect/prefect.db*")
        return {
            "server_mb": rss["server"] / 1e6,
            "workers_mb": rss["worker"] / 1e6,
            "fork_servers_mb": rss["fork server"] / 1e6,
            "processes": len(processes),
            "handles": sum(process.num_fds() for process in processes),
            "slots": len(self.open_runs()),
            "leases": len(self.store.working()),
            "scratch_mb": size_mb(self.folder / "tmp"),
            "logs_mb": size_mb(self.folder / "home"),
            "database_mb": sum(file.stat().st_size for file in database) / 1e6,
            "store_mb": size_mb(self.folder / "store"),
            "store_files": len(self.store.files.walk("")),
        }


def size_mb(folder: Path) -> float:
    return float(sum(size for size in Store(str(folder)).files.sizes("").values())) / 1e6


# ---------------------------------------------------------------- figures
def table(rows: pd.DataFrame) -> str:
    """Return first, last, least and largest value of each column."""
    columns = {
        "first": rows.iloc[0], "last": rows.iloc[-1], "least": rows.min(), "largest": rows.max()
    }  # fmt: skip
    return pd.DataFrame(columns).drop("hours").to_string(float_format="%.2f")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--csv", type=Path, default=Path("endurance.csv"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=4, help="kills per round, at most")
    parser.add_argument("--mean-s", type=float, default=30, help="mean time between two kills")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))
    rows: list[dict[str, float]] = []
    lost = left = 0
    with tempfile.TemporaryDirectory(prefix="rlt-endurance-") as folder:
        bench = Bench(Path(folder), random.Random(options.seed), {})
        began = time.monotonic()
        try:
            bench.up()
            began = time.monotonic()
            while time.monotonic() < began + 60 * options.minutes:
                done = dict.fromkeys(("seconds", "kills", "retries"), 0.0)
                try:
                    done = bench.compute(len(rows) % SEEDS, options.kills, options.mean_s)
                except (AssertionError, Lost) as error:
                    lost += 1
                    say(f"LOST: {error}")
                bench.clear()
                row = {"hours": (time.monotonic() - began) / 3600} | done | bench.sample()
                rows.append(row)
                pd.DataFrame(rows).to_csv(options.csv, index=False)
                say(" ".join(f"{name}={value:.4g}" for name, value in row.items()))
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            bench.rlt("down")
            left = len(bench.processes.marked())
            kills, retries = (sum(row[name] for row in rows) for name in ("kills", "retries"))
            print(
                f"{len(rows)} rounds in {(time.monotonic() - began) / 60:.0f} min, {kills:.0f} "
                f"kills, {retries:.0f} retries, {lost} rounds lost, {left} processes after "
                f"`rlt down`\n{table(pd.DataFrame(rows)) if rows else ''}",
                flush=True,
            )
    sys.exit(1 if lost or left else 0)


if __name__ == "__main__":
    main()
